"""The device that a rank keeps rows on, from the option ``device``."""

import os

from intentpm.foundation.errors import ConfigError, DeviceError
from intentpm.gpu.device import Device


def check_device(device: str) -> None:
    """Raises ConfigError."""
    kind, _, number = device.partition(":")
    if kind not in ("cuda", "emulated") or (number and not number.isdecimal()):
        raise ConfigError(f"device={device!r}: choose cuda, cuda:NUMBER, emulated or emulated:SEED")


def open_device(device: str, rank: int) -> Device:
    """ "cuda": the GPU that the launcher says is this rank's (LOCAL_RANK), or the first. Raises DeviceError."""
    kind, _, number = device.partition(":")
    if kind == "emulated":
        from intentpm.gpu.emulated import EmulatedDevice

        return EmulatedDevice(int(number or 0) * 4096 + rank)
    from intentpm.gpu.cuda import CudaDevice

    if not number and os.environ.get("LOCAL_RANK", "").isdecimal():
        number = os.environ["LOCAL_RANK"]
    try:
        return CudaDevice(int(number or 0))
    except DeviceError as error:
        raise DeviceError(f"{error}; init(device='emulated') tries a program without a GPU, slowly") from None
