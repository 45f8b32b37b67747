"""The devices of a rank: the one that the option ``device`` names, and others that its workers ask for."""

import os
import threading
from collections.abc import Mapping

from intentpm.foundation.errors import ConfigError, DeviceError
from intentpm.gpu.device import Device
from intentpm.runtime.types import World

_LOCAL_RANK = {
    "torchrun": ("LOCAL_RANK",),
    "mpi": ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"),
    "slurm": ("SLURM_LOCALID",),
}
"""What each launcher tells a rank about its place among those of its host."""


def check_device(device: str) -> None:
    """Raises ConfigError."""
    kind, _, number = device.partition(":")
    if kind not in ("cuda", "emulated") or (number and not number.isdecimal()):
        raise ConfigError(f"device={device!r}: choose cuda, cuda:NUMBER, emulated or emulated:SEED")


def local_rank(world: World, environment: Mapping[str, str] = os.environ) -> int:
    """This rank's number among those of its host, from 0 on: as LOCAL_RANK says, else the launcher, else as if one host
    after the other had been given ranks."""
    for name in ("LOCAL_RANK", *_LOCAL_RANK.get(world.launcher, ())):
        if environment.get(name, "").isdecimal():
            return int(environment[name])
    return world.rank % world.local_ranks


class Devices:
    """Of a rank; each is opened once, when it is first asked for. Any thread."""

    def __init__(self, of_rank: str, world: World) -> None:
        self._of_rank, self._world = of_rank, world
        self._opened: dict[str, Device] = {}  # guarded by: _opening
        self._opening = threading.Lock()

    def open(self, name: str | None = None) -> Device:
        """The device of that name; None: the rank's, as is its kind without a number. "cuda" of a rank is the one that
        ``local_rank`` says.

        Raises ConfigError, DeviceError.
        """
        if name is None or name == self._of_rank.partition(":")[0]:
            name = self._of_rank
        check_device(name)
        if name == "cuda":
            name = f"cuda:{self._of_local_rank()}"
        with self._opening:
            if name not in self._opened:
                self._opened[name] = open_device(name, self._world.rank)
            return self._opened[name]

    def sharers(self) -> int:
        """How many ranks of this host have the same device as this one, at most."""
        if self._of_rank.startswith("emulated"):
            return 1
        from intentpm.gpu.cuda import count_devices

        devices = count_devices() if self._of_rank == "cuda" else 1
        return -(-self._world.local_ranks // max(1, devices))

    def _of_local_rank(self) -> int:
        from intentpm.gpu.cuda import count_devices

        return local_rank(self._world) % max(1, count_devices())


def open_device(name: str, rank: int = 0) -> Device:
    """As ``check_device`` allows; "cuda" is the first. ``rank``: of an emulated one's seed. Raises DeviceError."""
    kind, _, number = name.partition(":")
    if kind == "emulated":
        from intentpm.gpu.emulated import EmulatedDevice

        return EmulatedDevice(int(number or 0) * 4096 + rank)
    from intentpm.gpu.cuda import CudaDevice

    try:
        return CudaDevice(int(number or 0))
    except DeviceError as error:
        raise DeviceError(f"{error}; init(device='emulated') tries a program without a GPU, slowly") from None
