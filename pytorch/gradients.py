"""The gradients of one table, from backward to the owners: what one backward pass finds becomes one optimiser step.

Guarantees
    * All gradients of one backward pass, whichever modules and forwards they come from, are summed per key and applied
      in one ``push_grad``, sent when the pass ends. A pass that fails applies nothing.
    * Sending waits for nothing; with a worker of a device, until gradients of which others have to be told have come to
      the host. A later pull of the same keys sees the step (a worker reads its own writes); a step
      that failed raises in the next forward, ``apply`` or ``settle``.
    * On a device a step comes after what backward did, whichever streams that ran on.
Assumption: a worker, and so this, is used by one thread at a time. On a CPU backward runs in the thread that calls it.
On a GPU ``add`` is called by a thread of autograd's, on the stream that forward ran on, ``_end_pass`` on the caller's;
who called waits.
"""

from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch

from intentpm.foundation.errors import OptimizerError
from intentpm.torch.on_device import Handed, device_of, on_device
from intentpm.torch.tensors import as_array, torch_dtype

_Part = tuple[Any, Any, Handed | None]
"""Keys, gradients, and on a device what they come after."""

NO_PASS = -1
_known: "WeakValueDictionary[tuple[int, int], TableGradients]" = WeakValueDictionary()


def gradients_of(table: Any, worker: Any) -> "TableGradients":
    """The one of this worker and table: modules on the same table share it."""
    # The entry keeps its worker alive, so while there is one, no other worker has this id.
    key = (id(worker), table.table_id)
    found = _known.get(key)
    if found is None:
        found = _known[key] = TableGradients(table, worker)
    return found


class TableGradients:
    """Gathers gradients of one table and sends them. Made by ``gradients_of``."""

    def __init__(self, table: Any, worker: Any) -> None:
        self.table, self.worker = table, worker
        self.lr: float | None = None
        """Learning rate of the next steps; None: the optimiser's own."""
        self.accumulating = False
        self._passes: dict[int, list[_Part]] = {}
        """Per backward pass that is under way (reentrant checkpoints nest them)."""
        self._kept: list[_Part] = []
        self._under_way: list[Any] = []

    def add(self, keys: Any, gradients: torch.Tensor) -> None:
        """From within a backward pass: ``gradients`` [K, D] for ``keys`` (int64 [K])."""
        if self.table.optimizer is None:
            raise OptimizerError(
                f"table {self.table.name!r} has no optimizer, so gradients cannot be applied: "
                "create_table(..., optimizer=intentpm.optim.Adagrad(lr=0.1)), or pass freeze=True to the module"
            )
        current = torch._C._current_graph_task_id()
        if current not in self._passes:
            self._passes[current] = []
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self._end_pass(current))
        there, device = self._in_place(gradients), device_of(self.worker)
        self._passes[current].append((keys, there, None if device is None else Handed(device, [there])))

    def _in_place(self, gradients: torch.Tensor) -> Any:
        """Where the worker takes them: on its device, or on the host."""
        device = device_of(self.worker)
        if device is None:
            return as_array(gradients, self.table.dtype)
        return on_device(device, gradients.detach().to(torch_dtype(self.table.dtype)).contiguous())

    def _end_pass(self, graph_task: int) -> None:
        self._kept += self._passes.pop(graph_task)
        if not self.accumulating:
            self._send()

    def accumulate(self) -> None:
        """From now on gradients are kept; ``apply`` sends them."""
        self.accumulating = True

    def apply(self) -> None:
        """Sends what was kept as one step, and ends ``accumulate``."""
        self.accumulating = False
        self._send()

    def _send(self) -> None:
        self._check_finished()
        parts, self._kept = self._kept, []
        for _, _, handed in parts:
            if handed is not None:
                handed.take()
        if parts:
            keys, gradients = parts[0][:2] if len(parts) == 1 else self._joined(parts)
            self._under_way.append(self.worker.push_grad_async(self.table, keys, gradients, lr=self.lr))

    def _joined(self, parts: "list[_Part]") -> tuple[Any, Any]:
        keys, gradients, _ = zip(*parts, strict=True)
        if device_of(self.worker) is None:
            return np.concatenate(keys), np.concatenate(gradients)
        return np.concatenate(keys), self._in_place(torch.cat(gradients))

    def before_forward(self) -> None:
        """Raises what an earlier step met; forgets backward passes that failed."""
        if torch._C._current_graph_task_id() == NO_PASS:
            self._passes.clear()
        self._check_finished()

    def settle(self) -> None:
        """Waits until all steps sent are at the owners. Raises PeerLostError."""
        under_way, self._under_way = self._under_way, []
        for future in under_way:
            future.wait()
        self.worker.wait_intents()  # steps that a replica keeps; others hear of them as of any write

    def _check_finished(self) -> None:
        while self._under_way and self._under_way[0].done():
            self._under_way.pop(0).wait()
