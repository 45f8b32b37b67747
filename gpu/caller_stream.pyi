from contextlib import AbstractContextManager

from intentpm.gpu.device import Device

DEFECTS: tuple[str, ...]

def plant(name: str) -> AbstractContextManager[None]: ...

class CallerStream:
    @property
    def host_waits_after(self) -> bool: ...
    def __init__(self, device: Device) -> None: ...
