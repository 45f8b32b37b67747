"""Ranks on this machine, started by ``intentpm run``: what a rank finds in its environment, and ``run_local``.

The launcher gives each rank ``INTENTPM_RANK``, ``INTENTPM_SIZE``, ``INTENTPM_RENDEZVOUS`` (host:port of the launcher's
rendezvous) and ``INTENTPM_SECRET``.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence

from intentpm.foundation.deadlines import wait_s
from intentpm.foundation.errors import ConfigError
from intentpm.launch.rendezvous import Address, Rendezvous
from intentpm.runtime.config import Config

MIN_SECRET_BYTES = 16
ON_LOSS_VARIABLE = "INTENTPM_ON_LOSS"
RESTARTS_VARIABLE = "INTENTPM_RESTARTS"
"""What a rank finds of how often its job was started anew before."""


class LocalWorld:
    """The world of a rank started by ``intentpm run``; implements ``intentpm.runtime.types.World``."""

    launcher = "local"

    def __init__(self, config: Config, environment: Mapping[str, str] = os.environ) -> None:
        self.rank = parse_integer(environment, "INTENTPM_RANK")
        self.size = parse_integer(environment, "INTENTPM_SIZE")
        if not 0 <= self.rank < self.size:
            raise ConfigError(f"INTENTPM_RANK={self.rank} with INTENTPM_SIZE={self.size}: needs 0 <= rank < size")
        self.local_ranks = parse_integer(environment, "INTENTPM_LOCAL_RANKS", self.size)
        if not 0 < self.local_ranks <= self.size:
            raise ConfigError(
                f"INTENTPM_LOCAL_RANKS={self.local_ranks} with INTENTPM_SIZE={self.size}: needs 1 to {self.size}"
            )
        self.secret = job_secret(config)
        self._rendezvous: Rendezvous | None = Rendezvous(
            [parse_address(environment, "INTENTPM_RENDEZVOUS")],
            self.rank,
            self.size,
            self.secret,
            timeout_s=config.start_timeout,
            server_name="the rendezvous of `intentpm run`",
        )

    def allgather(self, payload: bytes, timeout_s: float) -> list[bytes]:
        if self._rendezvous is None:
            raise ConfigError("this world is closed")
        return self._rendezvous.allgather(payload, timeout_s)

    def close(self) -> None:
        if self._rendezvous is not None:
            self._rendezvous.close()
            self._rendezvous = None


def run_local(
    n: int,
    argv: Sequence[str],
    *,
    transport: str | None = None,
    prefix: bool = True,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    grace_s: float | None = None,
    restarts: int = 0,
    on_loss: str = "stop",
) -> int:
    """Runs ``argv`` (a complete command line) as ``n`` ranks on this machine and waits for all of them.

    Parameters: ``transport`` sets ``INTENTPM_TRANSPORT``; ``prefix`` puts ``[rank]`` before each line of output (else
    the ranks write to this process's streams themselves); ``env`` is added to the environment of the ranks; after
    ``timeout_s`` everything is killed; ``grace_s`` is what the others get to end by themselves after a first failure;
    a job that fails is started anew, up to ``restarts`` times, unless it was told to end; ``on_loss`` sets
    ``INTENTPM_ON_LOSS``: with "continue" ranks that are left are let go on.

    Returns the exit code: 0 when every rank ended with 0 (with ``on_loss="continue"``: when one did), else that of the
    first rank to fail (128 + signal number for one that was killed), 124 after ``timeout_s``.

    Threads: in the main thread, INT, TERM, HUP, QUIT, USR1, USR2 and TSTP go to the ranks meanwhile. Nothing of the job
    is left when this returns, nor when this process is killed.
    """
    from intentpm.launch.job import TIMED_OUT, LocalJob

    if timeout_s is not None:
        wait_s(timeout_s, "timeout_s")  # refused before anything starts
    began = time.monotonic()
    for attempt in range(restarts + 1):
        variables = {**(env or {}), RESTARTS_VARIABLE: str(attempt)}
        if on_loss != os.environ.get(ON_LOSS_VARIABLE, "stop"):
            variables[ON_LOSS_VARIABLE] = on_loss
        with LocalJob(
            n, argv, transport=transport, prefix=prefix, env=variables, grace_s=grace_s, on_loss=on_loss
        ) as job:
            exit_code = job.wait(timeout_s, began)
        if exit_code in (0, TIMED_OUT) or job.told_to_end or attempt == restarts:
            break
        print(f"intentpm run: starts the job anew ({attempt + 1} of {restarts} restarts)", file=sys.stderr, flush=True)
    return exit_code


def job_secret(config: Config) -> bytes:
    """The secret of ``config`` as bytes. Raises ConfigError when there is none, or it is short."""
    secret = (config.secret or "").encode()
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigError(f"INTENTPM_SECRET has {len(secret)} bytes: needs at least {MIN_SECRET_BYTES}")
    return secret


def parse_address(environment: Mapping[str, str], name: str) -> Address:
    """The "host:port" in variable ``name``; IPv6 hosts in brackets or bare."""
    value = environment.get(name, "")
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{name}={value!r}: needs host:port")
    return host.strip("[]"), int(port)


def parse_integer(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environment.get(name, "" if default is None else str(default))
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"{name}={value!r}: needs a whole number") from None
