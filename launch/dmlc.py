"""The world of processes that meet as those of DMLC's parameter servers do (AdaPM among them): through a scheduler.

    DMLC_NUM_SERVER     how many ranks there are, one per process
    DMLC_ROLE           "server" for a rank, "scheduler" for the one process beside them
    DMLC_PS_ROOT_URI    host of the scheduler
    DMLC_PS_ROOT_PORT   port on which it listens

The scheduler serves the rendezvous (``rendezvous_server.py``), which numbers the ranks as they come, and ends when they
have left. Nothing of the data goes through it.

Security: as under Slurm (``slurm.py``). ``INTENTPM_SECRET`` where it is set; else what ranks recognise each other by is
derived from these variables, which tells jobs apart but keeps nobody out while a job starts. The transport's own secret
is a random one of rank 0.
"""

import hashlib
import os
from collections.abc import Mapping
from contextlib import closing

from intentpm.foundation.errors import ConfigError, PeerLostError
from intentpm.launch.introduction import introduce
from intentpm.launch.local import parse_integer
from intentpm.launch.rendezvous import ANY_RANK, MAX_RANKS, Address, Rendezvous
from intentpm.launch.rendezvous_server import RendezvousServer
from intentpm.runtime.config import Config

VARIABLES = ("DMLC_NUM_SERVER", "DMLC_ROLE", "DMLC_PS_ROOT_URI", "DMLC_PS_ROOT_PORT")
ROLES = ("server", "scheduler")


class DmlcWorld:
    """Implements ``intentpm.runtime.types.World``; the rank is what the scheduler gave. Needs DMLC_ROLE=server."""

    launcher = "dmlc"

    def __init__(self, config: Config, environment: Mapping[str, str] = os.environ) -> None:
        _check_role(environment, "server")
        self.size = _size(environment)
        host, port = _scheduler_address(environment)
        self._rendezvous = Rendezvous(
            [(host, port)],
            ANY_RANK,
            self.size,
            _meeting_secret(config, environment),
            timeout_s=config.start_timeout,
            server_name="the scheduler (DMLC_ROLE=scheduler)",
        )
        self.rank = self._rendezvous.rank
        try:
            self.secret, self.local_ranks = introduce(self.allgather, self.rank, config.secret, config.start_timeout)
        except BaseException:
            self.close()
            raise

    def allgather(self, payload: bytes, timeout_s: float) -> list[bytes]:
        return self._rendezvous.allgather(payload, timeout_s)

    def close(self) -> None:
        self._rendezvous.close()


def is_dmlc(environment: Mapping[str, str]) -> bool:
    """Whether any of the variables is set."""
    return any(environment.get(name) for name in VARIABLES)


def run_scheduler(config: Config, environment: Mapping[str, str] = os.environ) -> None:
    """Serves the ranks of one job: returns when all have left. Needs DMLC_ROLE=scheduler.

    Raises ConfigError for variables that cannot be used; TransportError when the port cannot be had; WaitTimeoutError
    when not all ranks came within ``config.start_timeout``; PeerLostError when one left without a goodbye, once the
    others have left too.
    """
    _check_role(environment, "scheduler")
    size = _size(environment)
    _, port = _scheduler_address(environment)
    server = RendezvousServer(size, _meeting_secret(config, environment), host="", ports=[port])
    with closing(server):
        lost = server.wait(config.start_timeout)
    for rank, why in lost.items():
        raise PeerLostError(rank, f"rank {rank} {why}; the job has ended")


def _check_role(environment: Mapping[str, str], needed: str) -> None:
    missing = [name for name in VARIABLES if not environment.get(name)]
    if missing:
        raise ConfigError(f"{', '.join(missing)} not set: the processes of a job meet by {', '.join(VARIABLES)}")
    role = environment["DMLC_ROLE"]
    if role not in ROLES:
        raise ConfigError(f"DMLC_ROLE={role!r}: choose server (workers are its threads) or scheduler")
    if role != needed:
        what = {"server": "setup() and Server() are", "scheduler": "scheduler() is"}[needed]
        raise ConfigError(f"DMLC_ROLE={role!r}: {what} for processes with DMLC_ROLE={needed}")


def _size(environment: Mapping[str, str]) -> int:
    size = parse_integer(environment, "DMLC_NUM_SERVER")
    if not 0 < size <= MAX_RANKS:
        raise ConfigError(f"DMLC_NUM_SERVER={size}: needs 1 to {MAX_RANKS}")
    return size


def _scheduler_address(environment: Mapping[str, str]) -> Address:
    port = parse_integer(environment, "DMLC_PS_ROOT_PORT")
    if not 0 < port < 65536:
        raise ConfigError(f"DMLC_PS_ROOT_PORT={port}: needs 1 to 65535")
    return environment["DMLC_PS_ROOT_URI"], port


def _meeting_secret(config: Config, environment: Mapping[str, str]) -> bytes:
    if config.secret:
        return config.secret.encode()
    # Not the host: the scheduler may call itself by another name than the ranks do.
    said = f"{_size(environment)}\0{_scheduler_address(environment)[1]}"
    return hashlib.sha256(b"intentpm dmlc job " + said.encode()).digest()
