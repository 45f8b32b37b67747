"""Handles that are pickled or copied say what they are, why that cannot be, and what to do instead."""

import copy
import multiprocessing
import pickle
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.simulation import simulate

import intentpm
from intentpm.transports.loopback import LoopbackNetwork
from intentpm.transports.tcp import TcpTransport

HANDLES = ("manager", "table", "worker", "future", "sampling", "sample", "engine", "loopback", "tcp", "sim")


@pytest.fixture(params=HANDLES)
def handle(request: pytest.FixtureRequest) -> Iterator[Any]:
    yield from made(request.param)


def made(kind: str) -> Iterator[Any]:
    if kind == "sim":
        with simulate(1, 1) as job:
            yield job.ranks[0]._transport
    elif kind == "loopback":
        yield LoopbackNetwork(1).transport(0)
    elif kind == "tcp":
        transport = TcpTransport(0, 2, b"x" * 16, host="127.0.0.1")
        yield transport
        transport.close(0.0)
    else:
        with intentpm.init() as pm:
            table, worker = pm.create_table("items", 10), pm.worker()
            yield {
                "manager": pm,
                "table": table,
                "worker": worker,
                "future": worker.pull_async(table, [1]),
                "sampling": pm.create_sampling(table),
                "sample": worker.prepare_sample(table, 2, 0),
                "engine": pm._engine,
            }[kind]


CROSSINGS: dict[str, Callable[[Any], Any]] = {
    **{f"pickle {protocol}": lambda handle, p=protocol: pickle.dumps(handle, p) for protocol in (0, 2, 5)},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "deepcopy of what holds it": lambda handle: copy.deepcopy({"inside": [SimpleNamespace(handle=handle)]}),
    "deepcopy of a bound method": lambda handle: copy.deepcopy(handle.__repr__),
}


@pytest.mark.parametrize("crossing", CROSSINGS)
def test_a_handle_says_in_one_sentence_why_it_cannot_cross(handle: Any, crossing: str) -> None:
    with pytest.raises(intentpm.HandleError) as caught:
        CROSSINGS[crossing](handle)
    words = str(caught.value)
    assert isinstance(caught.value, TypeError)
    assert words.startswith(repr(handle))
    assert "cannot be pickled or copied; " in words
    assert "\n" not in words


def test_a_process_that_is_to_get_a_handle_is_not_started() -> None:
    for kind in ("table", "worker"):
        for handle in made(kind):
            process = multiprocessing.get_context("spawn").Process(target=print, args=(handle,))
            with pytest.raises(intentpm.HandleError, match="no other process"):
                process.start()


class Rows:
    """A torch Dataset that makes its accesses in the DataLoader's process."""

    def __init__(self, worker: Any, table: Any) -> None:
        self.worker, self.table = worker, table

    def __len__(self) -> int:
        return 4

    def __getitem__(self, key: int) -> np.ndarray:
        rows: np.ndarray = self.worker.pull(self.table, [key])[0]
        return rows


def test_a_data_loader_that_would_take_a_worker_along_is_told_so() -> None:
    data = pytest.importorskip("torch.utils.data")
    with intentpm.init() as pm:
        rows = Rows(pm.worker(), pm.create_table("items", 4, 2, init=1.0))
        assert sum(float(batch.sum()) for batch in data.DataLoader(rows)) == 8.0
        loader = data.DataLoader(rows, num_workers=1, multiprocessing_context="spawn")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, which suggests to fork: then ForkError says the rest
            with pytest.raises(intentpm.HandleError, match=r"Worker.*a DataLoader's worker.*pass keys and rows on"):
                iter(loader)


def test_what_a_handle_says_of_itself_can_cross() -> None:
    with intentpm.init() as pm:
        table = pm.create_table("items", 10, 2)
        report = pm.explain(table, 3)
        said = (table.name, table.num_keys, table.row_shape, table.dtype, report, pm.stats())
        assert pickle.loads(pickle.dumps(said))[:4] == said[:4]
        error = intentpm.HandleError("why")
        assert str(pickle.loads(pickle.dumps(error))) == "why"
