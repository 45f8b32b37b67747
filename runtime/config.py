"""The options of a job: read once from arguments and ``INTENTPM_*`` variables, then frozen."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, get_args

from intentpm.foundation.deadlines import wait_s
from intentpm.foundation.errors import ConfigError
from intentpm.runtime.devices import check_device
from intentpm.runtime.option_values import check_value, parse_bytes

Management = Literal["adaptive", "relocate", "replicate", "static", "full_replication", "adapm"]
Timing = Literal["adaptive", "immediate"]
Synchronisation = Literal["async", "exact"]
Storage = Literal["host", "gpu", "tiered"]
OnLoss = Literal["stop", "continue"]


@dataclass(frozen=True, slots=True)
class Config:
    """All options. None needs setting; each has the environment variable ``INTENTPM_<NAME>``."""

    transport: str = "auto"
    """"auto", "ucx", "tcp", or "loopback" (ranks in one process)."""
    management: Management = "adaptive"
    timing: Timing = "adaptive"
    sync: Synchronisation = "async"
    """"exact": gradients of all ranks make one step per clock, with the same bits on any number of ranks."""
    on_loss: OnLoss = "stop"
    """What becomes of the job when a rank is lost. "continue": the others go on without it (docs/membership.md)."""
    clock_timeout: float = 300.0
    """With sync="exact": seconds for which a rank waits at the end of a clock for the others to come."""
    peer_timeout: float = 10.0
    """Seconds without a sign of life after which a rank that is waited for counts as lost."""
    start_timeout: float = 120.0
    """Seconds for all ranks to appear and connect."""
    sync_interval: float = 0.001
    """Seconds for which writes to replicated keys are gathered before they are sent on; on full links longer."""
    sync_threshold: float = 0.0
    """A replica's writes wait until the L2 norm of their sum reaches this (a wait_sync sends all). 0: no wait."""
    secret: str | None = None
    """Shared job secret. Default: made by the launcher."""
    spin_us: float | None = None
    """Microseconds a waiting thread polls before it sleeps. Default: from the cores per rank."""
    memory_budget: int | None = None
    """Bytes that this rank may use for tables, copies, messages, intents and saves, also as "8GiB" or "8GB". A table
    that does not fit is an error; copies that would not fit are not made (such keys stay remote). See docs/memory.md.
    Default: what the machine has."""
    seed: int | None = None
    """Seed of everything random (sampling, generated data). Default: from the operating system."""
    storage: Storage = "host"
    """Of tables whose ``create_table`` names none."""
    device: str = "cuda"
    """Where rows of ``create_table(storage="gpu")``, or "tiered", lie: "cuda", one for each rank of a host in turn,
    "cuda:NUMBER"; "emulated", "emulated:SEED": a device that is not there, for tests."""
    device_memory: int | None = None
    """Bytes on the device for the rows of each table with storage="tiered" whose ``create_table`` names none; also as
    "8GiB". Default: half of what is free there when the table is made."""
    host: str | None = None
    """Address or interface name the tcp transport listens on. Default: the address peers reach this host by."""
    port: int = 0
    """Port the tcp transport listens on; 0: any free one."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, check_value(field.name, getattr(self, field.name)))
        for name, allowed in (
            ("management", get_args(Management)),
            ("timing", get_args(Timing)),
            ("sync", get_args(Synchronisation)),
            ("storage", get_args(Storage)),
            ("on_loss", get_args(OnLoss)),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(allowed)}")
        self._check_on_loss()
        for name in ("peer_timeout", "start_timeout", "sync_interval", "clock_timeout"):
            seconds = wait_s(getattr(self, name), name)
            if seconds == 0:
                raise ConfigError(f"{name}={getattr(self, name)!r}: needs a positive number of seconds")
            object.__setattr__(self, name, seconds)
        if not self.sync_threshold >= 0:
            raise ConfigError(f"sync_threshold={self.sync_threshold!r}: needs a number >= 0")
        if self.spin_us is not None and wait_s(self.spin_us, "spin_us", "microseconds") > self.spin_us:
            raise ConfigError(f"spin_us={self.spin_us!r}: needs a number of microseconds >= 0")
        if self.memory_budget is not None and self.memory_budget <= 0:
            raise ConfigError(f"memory_budget={self.memory_budget!r}: needs a positive number of bytes")
        if self.device_memory is not None and self.device_memory <= 0:
            raise ConfigError(f"device_memory={self.device_memory!r}: needs a positive number of bytes")
        check_device(self.device)
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port={self.port!r}: needs a number from 0 to 65535")

    def _check_on_loss(self) -> None:
        for (name, value), why in _CANNOT_GO_ON.items():
            if self.on_loss == "continue" and getattr(self, name) == value:
                raise ConfigError(f'on_loss="continue" does not go with {name}={value!r}: {why}')


_DEVICE_ROWS = "rows on a device are not restored when their owner is lost"
_CANNOT_GO_ON = {
    ("sync", "exact"): "a clock's step needs the gradients of every rank",
    ("storage", "gpu"): _DEVICE_ROWS,
    ("storage", "tiered"): _DEVICE_ROWS,
    ("transport", "ucx"): (
        "a rank that is killed may leave the shared-memory queue of another stopped, which UCX cannot repair; use tcp"
    ),
}
"""Why on_loss="continue" cannot keep some values of options."""

_PARSERS: Mapping[str, Any] = {
    "peer_timeout": float,
    "start_timeout": float,
    "sync_interval": float,
    "sync_threshold": float,
    "clock_timeout": float,
    "spin_us": float,
    "memory_budget": parse_bytes,
    "device_memory": partial(parse_bytes, name="device_memory"),
    "seed": int,
    "port": int,
}


def read_config(arguments: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Config:
    """Merges explicit ``arguments`` (None: not given) over ``INTENTPM_*`` variables over the defaults.

    Raises ConfigError naming the option or variable at fault.
    """
    known = {field.name for field in fields(Config)}
    unknown = sorted(set(arguments) - known)
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}: init() takes {', '.join(sorted(known))}")
    values: dict[str, Any] = {}
    for name in known:
        variable = f"INTENTPM_{name.upper()}"
        if environment.get(variable):
            try:
                values[name] = _PARSERS.get(name, str)(environment[variable])
            except ConfigError as error:
                raise ConfigError(f"{variable}: {error}") from None
            except ValueError:
                raise ConfigError(f"{variable}={environment[variable]!r}: not a number") from None
        if arguments.get(name) is not None:
            values[name] = arguments[name]
    return Config(**values)
