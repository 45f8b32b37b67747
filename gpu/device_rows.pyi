from typing import Any

import numpy as np
import numpy.typing as npt

from intentpm.gpu.device import Device
from intentpm.gpu.kernel_names import RowLayout

class DeviceRows:
    @property
    def device(self) -> Device: ...
    @property
    def layout(self) -> RowLayout: ...
    def __init__(self, device: Device, layout: RowLayout, **numbers: float) -> None: ...
    def read(self, slots: npt.NDArray[np.int32], out: npt.NDArray[Any], stored: bool = False) -> None: ...
    def write(
        self, slots: npt.NDArray[np.int32], values: npt.NDArray[Any], how: str = "set", lr: float = 0.0
    ) -> None: ...
