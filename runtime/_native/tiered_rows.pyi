import numpy as np
import numpy.typing as npt

from intentpm.gpu.device import Device
from intentpm.runtime._native.device_tier import DeviceTier
from intentpm.runtime._native.store import Table

SEAT_BYTES_BESIDE: int

class TieredRows(DeviceTier):
    @property
    def seats(self) -> int: ...
    def __init__(self, table: Table, device: Device, seats: int) -> None: ...
    def keys_on_device(self) -> npt.NDArray[np.int64]: ...
    def audit(self) -> list[str]: ...
