"""What ``setup`` says of this process, and how its ranks meet."""

import os
from dataclasses import dataclass
from typing import Any

from intentpm.adapm.key_space import whole_count
from intentpm.foundation.errors import ConfigError
from intentpm.launch.dmlc import DmlcWorld, is_dmlc, run_scheduler
from intentpm.launch.world import find_world
from intentpm.runtime.arguments import whole_number
from intentpm.runtime.config import Config, Management, read_config
from intentpm.runtime.types import World

MANAGEMENT: dict[str, Management] = {
    "all": "adaptive",
    "replication_only": "replicate",
    "relocation_only": "relocate",
}
"""AdaPM's name -> ours."""


@dataclass(frozen=True)
class Setup:
    """The arguments of ``setup``."""

    num_keys: int
    num_threads: int
    config: Config


_current: Setup | None = None
"""Of this process; written by the thread that calls ``setup``."""


def setup(num_keys: int, num_threads: int, use_techniques: str = "", num_channels: int = -1) -> None:
    """Says what the job is, before ``Server`` is made. The same in every process.

    num_keys: keys are 0 to num_keys - 1.
    num_threads: workers of each process.
    use_techniques: "all", "replication_only" or "relocation_only"; "": INTENTPM_MANAGEMENT, or all.
    num_channels: means nothing here; -1 or a power of two.
    Raises ConfigError, ShapeError, DtypeError.
    """
    global _current
    _current = _check(num_keys, num_threads, use_techniques, num_channels)


def scheduler(num_keys: int, num_threads: int) -> None:
    """Runs the process that the others meet through (DMLC_ROLE=scheduler); returns when all of them have left.

    Raises ConfigError; TransportError when its port is taken; WaitTimeoutError when not all processes came within
    INTENTPM_START_TIMEOUT (120 s); PeerLostError when one of them was lost.
    """
    run_scheduler(_check(num_keys, num_threads, "", -1).config)


def current_setup() -> Setup:
    """Raises ConfigError before ``setup``."""
    if _current is None:
        raise ConfigError("call setup(num_keys, num_threads) before making a Server")
    return _current


def find_processes(config: Config) -> World:
    """The world that the DMLC variables describe; where none is set, that of whichever launcher started this process.

    Collective. Raises as ``find_world``.
    """
    return DmlcWorld(config) if is_dmlc(os.environ) else find_world(config)


def _check(num_keys: Any, num_threads: Any, use_techniques: str, num_channels: Any) -> Setup:
    if use_techniques and use_techniques not in MANAGEMENT:
        raise ConfigError(f"use_techniques={use_techniques!r}: choose one of {', '.join(MANAGEMENT)}")
    channels = whole_number(num_channels, "num_channels")
    if channels != -1 and (channels < 1 or channels & (channels - 1)):
        raise ConfigError(f"num_channels={channels}: needs a power of two, or -1")
    config = read_config({"management": MANAGEMENT.get(use_techniques), "host": os.environ.get("DMLC_INTERFACE")})
    return Setup(whole_count(num_keys, "num_keys"), whole_count(num_threads, "num_threads"), config)
