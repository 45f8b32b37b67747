from contextlib import AbstractContextManager

from intentpm.gpu.device import Device

DEFECTS: tuple[str, ...]

def plant(name: str) -> AbstractContextManager[None]: ...

class CallerStreams:
    def __init__(self, device: Device) -> None: ...
