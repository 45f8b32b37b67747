"""Tensors in the memory of a worker's device: CUDA tensors, or on an emulated device tensors of the CPU in its memory.

An emulated device's memory is the host's, so PyTorch on the CPU works with it: what a worker enqueues for it, the host
has waited for. On a GPU nothing here waits for the device.
"""

import ctypes
from typing import Any

import torch

from intentpm.gpu.device import Device
from intentpm.gpu.emulated import EmulatedDevice
from intentpm.gpu.handles import Event, Memory


def device_of(worker: Any) -> Device | None:
    """None: a worker of the host."""
    device: Device | None = getattr(worker, "device", None)
    return device


def empty_on(device: Device, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of garbage [*shape] in the device's memory."""
    if not isinstance(device, EmulatedDevice):
        return torch.empty(shape, dtype=dtype, device=f"cuda:{device.dlpack_number}")
    return tensor_in(Memory(device, max(1, torch.Size(shape).numel() * dtype.itemsize)), shape, dtype)


def tensor_in(memory: Memory, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """One [*shape] at the beginning of an emulated device's memory."""
    # Torch keeps the buffer, which keeps the memory.
    kind: Any = type("Buffer", (ctypes.c_uint8 * memory.size_bytes,), {})
    buffer = kind.from_address(memory.address)
    buffer.memory = memory
    size_bytes = torch.Size(shape).numel() * dtype.itemsize
    return torch.frombuffer(buffer, dtype=torch.uint8)[:size_bytes].view(dtype).view(shape)


def on_device(device: Device, tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` there: itself if it is; else a copy, made on the current stream."""
    if not isinstance(device, EmulatedDevice):
        return tensor.to(f"cuda:{device.dlpack_number}", non_blocking=True)
    if device.holds_address(tensor.data_ptr()):
        return tensor
    return empty_on(device, tuple(tensor.shape), tensor.dtype).copy_(tensor)


def indices_on(device: Device, indices: Any) -> torch.Tensor:
    """An array of integers as a tensor for PyTorch to index with on the device."""
    return on_device(device, torch.from_numpy(indices))


class Handed:
    """Tensors on a device that one stream has made, for use on others."""

    def __init__(self, device: Device, tensors: list[torch.Tensor]) -> None:
        """The stream is the calling thread's current one."""
        self._tensors = tensors
        self._event: Any = None
        if isinstance(device, EmulatedDevice):
            self._device: EmulatedDevice | None = device
            if device.current_stream is not None:
                self._event = Event(device)
                device.current_stream.record(self._event)
            return
        self._device = None
        if tensors:
            self._event = torch.cuda.current_stream(tensors[0].device).record_event()

    def take(self) -> None:
        """The calling thread's current stream comes after what made them; their memory is reused after it."""
        if self._event is None:
            return
        if self._device is not None:
            if self._device.current_stream is None:
                self._event.synchronize()
            else:
                self._device.current_stream.wait(self._event)
            return
        stream = torch.cuda.current_stream(self._tensors[0].device)
        stream.wait_event(self._event)
        for tensor in self._tensors:
            tensor.record_stream(stream)


class Moved:
    """A batch that was moved to a device, perhaps in another thread than the one that uses it."""

    def __init__(self, device: Device, batch: Any) -> None:
        self._device, self._pairs = device, list[tuple[torch.Tensor, torch.Tensor]]()
        """Of tensors of the batch, and where they are now."""
        self.batch = self._move(batch)
        self._handed = Handed(device, [there for _, there in self._pairs])

    def take(self) -> Any:
        """The batch, for the calling thread's current stream."""
        self._handed.take()
        return self.batch

    def counterpart(self, view: torch.Tensor) -> torch.Tensor | None:
        """What ``view``, of a contiguous tensor of the batch as it was, is of the one that was moved; None: of none."""
        for here, there in self._pairs:
            if _is_part(view, here):
                start = there.storage_offset() + (view.data_ptr() - here.data_ptr()) // view.itemsize
                return there.as_strided(view.shape, view.stride(), start)
        return None

    def forget_originals(self) -> None:
        self._pairs.clear()

    def _move(self, part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            self._pairs.append((part, on_device(self._device, part)))
            return self._pairs[-1][1]
        if isinstance(part, dict):
            return {name: self._move(value) for name, value in part.items()}
        if isinstance(part, tuple) and hasattr(part, "_fields"):
            return type(part)(*map(self._move, part))
        return type(part)(map(self._move, part)) if isinstance(part, list | tuple) else part


def _is_part(view: torch.Tensor, whole: torch.Tensor) -> bool:
    """Whether all of ``view`` lies in the memory of ``whole``, which is contiguous."""
    if (view.dtype, view.device) != (whole.dtype, whole.device) or not whole.is_contiguous() or not view.numel():
        return False
    begin = view.data_ptr() - whole.data_ptr()
    last = sum((length - 1) * stride for length, stride in zip(view.shape, view.stride(), strict=True))
    return begin >= 0 and begin % view.itemsize == 0 and begin + (last + 1) * view.itemsize <= whole.nbytes
