"""The world of ranks started by ``torchrun``, or anything else that sets torch's ``env://`` variables; needs torch.

Ranks meet in torch's key-value store, under a prefix of our own, so that ``torch.distributed.init_process_group``
works before and after as if we had not been here. What earlier attempts of a restarted job left there does not matter
(``roll_call.py``).
"""

import os
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from intentpm.foundation.deadlines import call_s, wait_s
from intentpm.foundation.errors import ConfigError, TransportError
from intentpm.launch.agreement import name_ranks
from intentpm.launch.introduction import introduce
from intentpm.launch.local import parse_integer
from intentpm.launch.roll_call import meet, wait_until
from intentpm.runtime.config import Config

_PAUSE_S = 0.1
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
        self._store = self._meet(environment, config.start_timeout)
        self.secret, self.local_ranks = introduce(self.allgather, self.rank, config.secret, config.start_timeout)

    def allgather(self, payload: bytes, timeout_s: float) -> list[bytes]:
        if self._store is None:
            raise TransportError("this world is closed")
        store, keys = self._store, [f"{self._sequence}/{rank}" for rank in range(self.size)]

        def complain() -> str:
            missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
            return f"not all {self.size} ranks came within {timeout_s:g} s: {name_ranks(missing)} did not"

        try:
            store.set(keys[self.rank], payload)
            # Asked again and again, because a wait() that times out writes warnings, and cannot be interrupted.
            wait_until(lambda: store.check(keys), time.monotonic() + wait_s(timeout_s), complain)
            answers: list[bytes] = store.multi_get(keys)
        except RuntimeError as error:  # torch's DistError
            raise self._failure(error) from None
        self._sequence += 1
        return answers

    def close(self) -> None:
        self._store = None

    def _meet(self, environment: Mapping[str, str], timeout_s: float) -> Any:
        """The store, under the name of this meeting."""
        deadline = time.monotonic() + wait_s(timeout_s)
        while True:
            store = _open_store(self.rank, environment, max(0.1, deadline - time.monotonic()))
            try:
                return _below(meet(store, self.rank, self.size, timeout_s, deadline), store)
            except RuntimeError as error:
                # Rank 0 of an earlier attempt may have served it, and has ended now: the next one's rank 0 will.
                if _is_agents(environment) or self.rank == 0 or time.monotonic() + _PAUSE_S >= deadline:
                    raise self._failure(error) from None
                time.sleep(_PAUSE_S)

    def _failure(self, error: Exception) -> TransportError:
        return TransportError(f"rank {self.rank}: torchrun's store failed: {_first_line(error)}")


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
    is_server = rank == 0 and not _is_agents(environment)
    host, port = environment["MASTER_ADDR"], parse_integer(environment, "MASTER_PORT")
    try:
        store = distributed.TCPStore(
            host,
            port,
            is_master=is_server,
            timeout=timedelta(seconds=call_s(timeout_s)),
            wait_for_workers=False,
            multi_tenant=is_server,
        )
    except (RuntimeError, ValueError) as error:
        raise TransportError(f"rank {rank}: no torch store at {host}:{port}: {_first_line(error)}") from None
    if is_server:
        _hosted.append(store)
    # Two jobs may share a store (the same --rdzv-endpoint, another --rdzv-id).
    return _below(f"intentpm/{environment.get('TORCHELASTIC_RUN_ID', '')}", store)


def _below(prefix: str, store: Any) -> Any:
    from torch.distributed import PrefixStore

    return PrefixStore(prefix, store)


def _is_agents(environment: Mapping[str, str]) -> bool:
    return environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
