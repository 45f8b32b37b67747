"""``IntentLoader``: a data loader whose batches are announced to the parameter manager before they are used."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch

from intentpm.foundation.errors import ConfigError, ForkError, SampleError
from intentpm.runtime._native.distinct import distinct_keys
from intentpm.runtime.ahead import Ahead
from intentpm.torch.on_device import Moved, device_of
from intentpm.torch.read_ahead import ReadAhead
from intentpm.torch.tensors import nbytes_of
from intentpm.torch.who_reads import WhoReads
from intentpm.torch.whole_batches import read_whole


@dataclass(slots=True)
class _Item:
    """A batch that was read."""

    batch: Any
    keys: list[tuple[Any, Any]]
    """Tables and the int64 keys that the batch accesses."""
    state: Any
    """Of the loader, after it gave this batch."""
    clock: int = -1
    """For which it was announced."""
    samples: dict[int, Any] = field(default_factory=dict)
    on_device: list[tuple[torch.Tensor, Any]] = field(default_factory=list)
    """Tensors of keys there, and what they are."""
    moved: Moved | None = None


class IntentLoader:
    """Iterates over ``loader`` as a plain loop does, and reads ahead: signals which keys the coming batches access, and
    advances the worker's clock from one batch to the next.

    Parameters
        loader: any iterable that can be iterated once per epoch; a DataLoader, with worker processes too if these are
            started by "spawn" or "forkserver" (``DataLoader(..., multiprocessing_context="forkserver")``).
        keys: for each table, a function from a batch to the keys that it will look up: integers of any shape, as a
            tensor, an array or anything else that ``torch.as_tensor`` takes. Runs where the loader is read, once a
            batch.
        ahead: how many batches to read ahead; "auto": as many as the parameter manager needs to act in time, as long as
            the batches fit in 256 MB. 0: nothing is announced.
        move: batches are moved to the device of the worker (``pm.worker(device=...)``) ahead, tensors in them that is;
            memory that a DataLoader has pinned (``pin_memory=True``) without waiting. What the functions of ``keys``
            return is known there again where it is such a tensor or a view of one: nobody waits for the device then.
        samples: for each table (or Sampling of ``pm.create_sampling``), how many keys to draw for each batch;
            ``loader.sample(table)`` are those of the batch in use.

    A batch's clock ends when the next one is asked for. Leaving the loop early moves the clock past what was announced;
    with ``sync="exact"`` past the batch in use alone, so all ranks leave after as many batches.
    What the loader raises reaches the loop, after the batches before it. All other attributes are the loader's own
    (``sampler``, ``dataset``, ...); ``state_dict()`` of a loader that has one is the state after the batch in use, not
    after what was read ahead.

    Threads: that of the worker iterates; from the second batch on the loader is read by it too, or by another thread,
    whichever the loop is faster with (``who_reads``).
    Raises ForkError for a DataLoader whose workers would be forked; ConfigError.
    """

    def __init__(
        self,
        worker: Any,
        loader: Iterable[Any],
        keys: Mapping[Any, Callable[[Any], Any]],
        ahead: int | str = "auto",
        samples: Mapping[Any, int] | None = None,
        move: bool = False,
    ) -> None:
        if move and device_of(worker) is None:
            raise ConfigError("IntentLoader(move=True) needs a worker of a device: pm.worker(device=...)")
        self._ahead = Ahead(ahead, worker.manager)
        _refuse_fork(loader)
        self.worker, self.loader = worker, loader
        self._keys, self._samples = dict(keys), dict(samples or {})
        self._move = move
        self._in_use: _Item | None = None
        self._reader: ReadAhead | None = None
        self._who_reads = WhoReads()

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not there yet: copying and unpickling ask before __init__ has run
            raise AttributeError(name)
        value = getattr(self.loader, name)
        return self._state_dict if name == "state_dict" else value

    def _state_dict(self) -> Any:
        return self.loader.state_dict() if self._in_use is None else self._in_use.state  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[Any]:
        if self._reader is not None:
            raise ConfigError("this IntentLoader is being iterated: finish or leave that loop first")
        reader = self._reader = ReadAhead(read_whole(self.loader), self._prepare)
        announced: deque[_Item] = deque()
        try:
            yield from self._batches(reader, announced)
        finally:
            self._reader = None
            self._pass_by(announced)
            reader.stop()

    def _batches(self, reader: ReadAhead, announced: deque[_Item]) -> Iterator[Any]:
        started = False
        self._who_reads.began()
        while True:
            self._take(reader, announced, wait=not announced)
            if not announced:
                self._in_use = None
                return
            if not started and self._ahead.announces:
                self._announce([announced[0]], self.worker.clock)
                self.worker.wait_intents()  # nothing could be announced ahead of the first batch; the others follow it
                started = True
            self._announce(announced, self.worker.clock)
            self._in_use = announced[0]
            try:
                yield announced[0].batch if announced[0].moved is None else announced[0].moved.take()
                # While its windows are open: a key that the next batches use as well does not leave in between.
                if not reader.ended:
                    self._who_reads.next_batch()
                self._take(reader, announced)
                self._announce(islice(announced, 1, None), self.worker.clock + 1)
            finally:
                self.worker.advance_clock()
                announced.popleft()

    def _take(self, reader: ReadAhead, announced: deque[_Item], wait: bool = False) -> None:
        taken = reader.take(wait, self.ahead - len(announced), self._who_reads.in_loop)
        self._who_reads.read(len(taken))
        announced += taken

    @property
    def ahead(self) -> int:
        """How many batches are read ahead at the moment."""
        return self._ahead.batches()

    def sample(self, source: Any) -> torch.Tensor:
        """Keys drawn for the batch in use, int64 [n]: look them up with an Embedding. ``source``: a key of ``samples``.

        Drawn when first asked for, or ahead and announced, as the sampling's scheme says. Raises SampleError.
        """
        sample = self._in_use.samples.get(id(source)) if self._in_use else None
        if sample is None:
            raise SampleError(f"no sample of {source!r} for the batch in use: IntentLoader(..., samples={{table: 64}})")
        if sample.left:
            sample.sampling.take(sample, self.worker, None)
        return torch.from_numpy(sample.keys)

    def _prepare(self, batch: Any) -> _Item:
        """In the thread that reads."""
        state = self.loader.state_dict() if hasattr(self.loader, "state_dict") else None
        device = device_of(self.worker)
        given = []
        if self._ahead.announces or device is not None:
            given = [(table, torch.as_tensor(keys_of(batch))) for table, keys_of in self._keys.items()]
        item = _Item(batch, [(table, _as_keys(keys)) for table, keys in given] if self._ahead.announces else [], state)
        if device is not None and self._move:
            item.moved = Moved(device, batch)
            item.batch = item.moved.batch
        if device is not None:
            item.on_device = list(_known_there(item.moved, [keys for _, keys in given]))
        self._ahead.prepared(nbytes_of(batch) + sum(part.nbytes for _, part in item.keys))
        return item

    def _announce(self, items: Iterable[_Item], first_clock: int) -> None:
        """Signals the intents of items that are new, or whose clock is another now: somebody else advanced it too."""
        for clock, item in enumerate(items, first_clock):
            if item.clock == clock:
                continue
            item.clock = clock
            for table, keys in item.keys:
                self.worker.intent(table, keys, clock, clock + 1)
            for there, on_host in item.on_device:
                self.worker.note_keys(there.reshape(-1), on_host, clock + 1)
            for source, count in self._samples.items():
                item.samples[id(source)] = self.worker.prepare_sample(source, count, clock)

    def _pass_by(self, announced: deque[_Item]) -> None:
        """Ends the windows of batches that nobody will use. With ``sync="exact"`` a clock is a step of all ranks, who
        have read ahead differently far: there the windows end with the clocks of what is trained next.
        """
        if self.worker.manager.config.sync == "exact":
            return
        while announced and announced[-1].clock >= self.worker.clock:
            self.worker.advance_clock()


def _known_there(moved: Moved | None, given: list[torch.Tensor]) -> Iterator[tuple[torch.Tensor, Any]]:
    """Of keys that lie on the device, before they were moved or since: the tensor there, and what is in it."""
    for keys in given:
        there = keys if moved is None else moved.counterpart(keys)
        if there is not None:
            yield there, _in_order(keys)
    if moved is not None:
        moved.forget_originals()


def _as_keys(keys: Any) -> Any:
    """Each once, in the order in which management will find what it knows of them side by side."""
    return np.sort(distinct_keys(torch.as_tensor(keys).reshape(-1).to(device="cpu", dtype=torch.int64).numpy())[0])


def _in_order(keys: Any) -> Any:
    """A copy: the loader may fill the same tensor with the next batch."""
    return torch.as_tensor(keys).reshape(-1).to(device="cpu", dtype=torch.int64, copy=True).numpy()


def _refuse_fork(loader: Any) -> None:
    if not getattr(loader, "num_workers", 0):
        return
    context = getattr(loader, "multiprocessing_context", None) or multiprocessing
    if (context.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]) == "fork":
        raise ForkError(
            "this DataLoader forks its workers, which must not happen once intentpm has started: "
            'DataLoader(..., multiprocessing_context="forkserver"), or "spawn"'
        )
