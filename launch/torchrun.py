"""The world of ranks started by ``torchrun``, or anything else that sets torch's ``env://`` variables; needs torch.

Ranks meet in torch's key-value store, under a prefix of our own, so that ``torch.distributed.init_process_group``
works before and after as if we had not been here.
"""

import os
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from intentpm.foundation.errors import ConfigError, TransportError, WaitTimeoutError
from intentpm.launch.agreement import name_ranks
from intentpm.launch.generation import next_generation
from intentpm.launch.introduction import introduce
from intentpm.launch.local import parse_integer
from intentpm.runtime.config import Config

_MAX_PAUSE_S = 0.1
_hosted: list[Any] = []
"""Stores that rank 0 serves; kept until the process ends, because other ranks may still read."""


class TorchrunWorld:
    """Implements ``intentpm.runtime.types.World`` over a ``torch.distributed.TCPStore``."""

    launcher = "torchrun"

    def __init__(self, config: Config, environment: Mapping[str, str] = os.environ) -> None:
        self.rank = parse_integer(environment, "RANK")
        self.size = parse_integer(environment, "WORLD_SIZE")
        if not 0 <= self.rank < self.size:
            raise ConfigError(f"RANK={self.rank} with WORLD_SIZE={self.size}: needs 0 <= rank < size")
        self._sequence = 0
        self._store = _open_store(self.rank, environment, config.start_timeout)
        self.secret, self.local_ranks = introduce(self.allgather, self.rank, config.secret, config.start_timeout)

    def allgather(self, payload: bytes, timeout_s: float) -> list[bytes]:
        if self._store is None:
            raise TransportError("this world is closed")
        keys = [f"{self._sequence}/{rank}" for rank in range(self.size)]
        deadline = time.monotonic() + timeout_s
        try:
            self._store.set(keys[self.rank], payload)
            self._wait(keys, deadline, timeout_s)
            answers: list[bytes] = self._store.multi_get(keys)
        except RuntimeError as error:  # torch's DistError
            raise TransportError(f"rank {self.rank}: torchrun's store failed: {_first_line(error)}") from None
        self._sequence += 1
        return answers

    def close(self) -> None:
        self._store = None

    def _wait(self, keys: list[str], deadline: float, timeout_s: float) -> None:
        # Asked again and again, because a wait() that times out writes warnings, and cannot be interrupted.
        pause_s = 0.001
        while not self._store.check(keys):
            if time.monotonic() >= deadline:
                missing = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
                raise WaitTimeoutError(
                    f"not all {self.size} ranks came within {timeout_s:g} s: {name_ranks(missing)} did not"
                )
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, _MAX_PAUSE_S)


def _open_store(rank: int, environment: Mapping[str, str], timeout_s: float) -> Any:
    try:
        from torch import distributed
    except ImportError:
        raise ConfigError(
            "the variables of torchrun are set (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), but torch is not "
            "installed: pip install 'intentpm[torch]' (or set INTENTPM_LAUNCHER, or unset these variables)"
        ) from None
    # torchrun's agent serves the store; where there is no agent, rank 0 does, as it does in init_process_group, and
    # multi_tenant lets the two share it.
    is_server = rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    host, port = environment["MASTER_ADDR"], parse_integer(environment, "MASTER_PORT")
    try:
        store = distributed.TCPStore(
            host,
            port,
            is_master=is_server,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            multi_tenant=is_server,
        )
    except (RuntimeError, ValueError) as error:
        raise TransportError(f"rank {rank}: no torch store at {host}:{port}: {_first_line(error)}") from None
    if is_server:
        _hosted.append(store)
    restart = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    prefix = f"intentpm/{restart}/{next_generation()}"
    return distributed.PrefixStore(prefix, store)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
