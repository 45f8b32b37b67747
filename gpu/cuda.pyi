from collections.abc import Callable, Iterable

from intentpm.gpu.device import Device

def count_devices(library: str = "libcuda.so.1") -> int: ...

class CudaDevice(Device):
    @property
    def ordinal(self) -> int: ...
    def __init__(
        self,
        ordinal: int = 0,
        *,
        library: str = "libcuda.so.1",
        compile_kernels: Callable[[int, Iterable[str]], dict[str, int]] = ...,
    ) -> None: ...
