"""The world of ranks started by Slurm's ``srun``; needs nothing installed.

Rank 0 listens on a port that all ranks derive from the job's identifiers (the first free one of a few), until its
process ends; the others find it on the first node of the step. One whose next program comes before that end finds rank
0's next one after it. A job that is requeued keeps its number: how often it was is one of the identifiers.

Security: the ranks need a common secret before they have met. ``INTENTPM_SECRET``, if set in the job's environment, is
that secret. Otherwise it is derived from job, step and user identifiers, which other users of the cluster can find out:
it tells jobs apart, but does not keep out an attacker who is on the network while the job starts. It is used only to
meet; rank 0 then makes a random secret for the transport and gives it to those that have joined. Nothing is encrypted.
"""

import atexit
import hashlib
import os
import re
from collections.abc import Mapping

from intentpm.foundation.errors import ConfigError
from intentpm.launch.introduction import introduce
from intentpm.launch.local import parse_address, parse_integer
from intentpm.launch.rendezvous import Rendezvous
from intentpm.launch.rendezvous_server import RendezvousServer
from intentpm.runtime.config import Config

_FIRST_PORT, _PORTS = 15000, 15000  # below the ports that Linux and others give away by themselves
_CANDIDATES = 16
_IDENTIFIERS = (
    "SLURM_CLUSTER_NAME",
    "SLURM_JOB_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_STEP_ID",
    "SLURM_JOB_UID",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_SRUN_COMM_HOST",
    "SLURM_SRUN_COMM_PORT",
)


class SlurmWorld:
    """Implements ``intentpm.runtime.types.World`` for the tasks of a Slurm step."""

    launcher = "slurm"

    def __init__(self, config: Config, environment: Mapping[str, str] = os.environ) -> None:
        self.rank = parse_integer(environment, "SLURM_PROCID")
        self.size = parse_integer(environment, "SLURM_STEP_NUM_TASKS")
        if not 0 <= self.rank < self.size:
            raise ConfigError(f"SLURM_PROCID={self.rank} with SLURM_STEP_NUM_TASKS={self.size}: needs rank < size")
        secret = meeting_secret(config, environment)
        host, ports = meeting_point(environment)
        if self.rank == 0:
            host, ports = "127.0.0.1", [_serve(self.size, secret, ports)]
        self._rendezvous = Rendezvous(
            [(host, port) for port in ports],
            self.rank,
            self.size,
            secret,
            timeout_s=config.start_timeout,
            server_name="rank 0",
        )
        try:
            self.secret, self.local_ranks = introduce(self.allgather, self.rank, config.secret, config.start_timeout)
        except BaseException:
            self.close()
            raise

    def allgather(self, payload: bytes, timeout_s: float) -> list[bytes]:
        return self._rendezvous.allgather(payload, timeout_s)

    def close(self) -> None:
        self._rendezvous.close()


_servers: dict[bytes, RendezvousServer] = {}
"""Of this process, by their secret. Kept, because a rank may come for its next world before rank 0 does."""


def _serve(size: int, secret: bytes, ports: list[int]) -> int:
    """The port on which this process, rank 0, serves the others."""
    if secret not in _servers:
        _servers[secret] = RendezvousServer(size, secret, host="", ports=ports, serving_rank=0)
        # The others may still have an answer to read: gives them a few seconds to say goodbye.
        atexit.register(_servers[secret].close)
    return _servers[secret].address[1]


def meeting_secret(config: Config, environment: Mapping[str, str]) -> bytes:
    """The secret with which ranks recognise each other; weak unless set (see the top of this file)."""
    if config.secret:
        return config.secret.encode()
    identity = "\0".join(f"{name}={environment.get(name, '')}" for name in _IDENTIFIERS)
    return hashlib.sha256(b"intentpm slurm job " + identity.encode()).digest()


def meeting_point(environment: Mapping[str, str]) -> tuple[str, list[int]]:
    """Host of rank 0 and the ports it may listen on. ``INTENTPM_RENDEZVOUS=host:port`` overrides both."""
    if "INTENTPM_RENDEZVOUS" in environment:
        host, port = parse_address(environment, "INTENTPM_RENDEZVOUS")
        return host, [port]
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    if not nodes:
        raise ConfigError(
            "SLURM_STEP_NODELIST is not set: cannot tell where rank 0 is. Set INTENTPM_RENDEZVOUS=host:port"
        )
    job = ".".join(environment.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID"))
    digest = hashlib.sha256(job.encode()).digest()
    return first_host(nodes), [
        _FIRST_PORT + int.from_bytes(digest[2 * i : 2 * i + 2], "big") % _PORTS for i in range(_CANDIDATES)
    ]


def first_host(nodes: str) -> str:
    """The first name of a Slurm node list: "n[007-010,12],m1" -> "n007"."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert first is not None
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group())
