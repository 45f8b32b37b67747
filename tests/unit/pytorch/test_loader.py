"""IntentLoader: the batches of a plain loop, announced ahead, on its own worker's clock; whoever reads them."""

import itertools
import multiprocessing
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import intentpm  # noqa: E402
from intentpm.testing import run_ranks  # noqa: E402
from intentpm.torch import Embedding, IntentLoader, who_reads  # noqa: E402
from intentpm.torch import loader as loader_module  # noqa: E402

BATCHES = [torch.tensor([[i, i + 1], [i + 2, i]]) for i in range(20)]


@pytest.fixture(autouse=True, params=["thread", "loop", "by turns"])
def who(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who reads the loaders of a test: all of them would be too short to find out who is faster."""

    class Given(who_reads.WhoReads):
        def began(self) -> None:
            self.in_loop = request.param == "loop"

        def next_batch(self) -> None:
            self.in_loop ^= request.param == "by turns"

    monkeypatch.setattr(loader_module, "WhoReads", Given)
    return request.param


def with_worker(use, n: int = 1, **options):
    """``use(pm, table, worker)`` on each rank."""

    def main(pm):
        table = pm.create_table("t", 1000, 4)
        return use(pm, table, pm.worker())

    return run_ranks(n, main, **options)


def same(batch):
    return batch


@pytest.mark.parametrize("ahead", ["auto", 0, 1, 5, 100])
def test_gives_the_loader_s_batches_in_order_one_clock_each(ahead) -> None:
    def use(pm, table, worker):
        loader = IntentLoader(worker, BATCHES, {table: same}, ahead)
        assert len(loader) == len(BATCHES)
        for epoch in range(3):
            start = epoch * len(BATCHES)
            seen = [(worker.clock - start, batch) for batch in loader]
            assert [clock for clock, _ in seen] == list(range(len(BATCHES)))
            assert all(batch is expected for (_, batch), expected in zip(seen, BATCHES, strict=True))
        return pm.stats()["intents"]["signalled"]

    for signalled in with_worker(use, 2):  # a rank alone keeps no intents
        assert signalled == (0 if ahead == 0 else 3 * 3 * len(BATCHES)), "each distinct key of each batch, once"


def test_every_access_is_local_once_announced() -> None:
    """The point of it: two ranks, disjoint keys; without intents half of each batch's keys would be remote."""

    def use(pm, table, worker):
        generator = np.random.default_rng(pm.rank)
        batches = [2 * generator.permutation(500)[:50] + pm.rank for _ in range(60)]
        embedding = Embedding(table, worker)
        for batch in IntentLoader(worker, batches, {table: same}, ahead=10):
            embedding(torch.as_tensor(batch))
            worker.wait_sync()  # as slow a step as it takes for management to keep up
        counts = pm.stats()["tables"]["t"]
        return counts["remote"] / (counts["local"] + counts["replica"] + counts["remote"]), pm.stats()["coverage"]

    for remote, coverage in with_worker(use, 2):
        assert remote < 0.1
        assert coverage["announced"] >= coverage["in_time"] > 0.9


def test_uneven_ends_hold_nobody_up() -> None:
    def use(pm, table, worker):
        batches = BATCHES[: 3 + 5 * pm.rank]
        return [len(list(IntentLoader(worker, batches, {table: same}))) for _ in range(2)]

    assert with_worker(use, 3) == [[3, 3], [8, 8], [13, 13]]


def test_an_early_break_ends_the_thread_and_what_was_announced() -> None:
    def use(pm, table, worker):
        loader = IntentLoader(worker, BATCHES, {table: same}, ahead=8)
        for count, _ in enumerate(loader):
            if count == 5:
                break
        assert worker.clock >= 6
        assert all(not pm.explain(table, key).intents for key in range(30)), "a window is left open"
        pm.barrier()
        assert "intentpm-loader" not in [thread.name for thread in threading.enumerate()]
        pm.barrier()
        assert [batch is expected for batch, expected in zip(loader, BATCHES, strict=True)] == [True] * 20

    with_worker(use, 2)


def test_ranks_of_exact_clocks_leave_after_as_many_batches_however_far_they_read() -> None:
    """A clock is a step of all ranks: one that advanced past what it had announced would wait for the others."""

    def use(pm, table, worker):
        bound = 1 + 4 * pm.rank  # ranks have announced differently many batches
        for ahead in (bound, 8):
            loader = IntentLoader(worker, BATCHES, {table: same}, ahead=ahead)
            for count, batch in enumerate(loader):
                worker.push_grad(table, batch.reshape(-1).numpy(), np.ones((4, 4), np.float32))
                if count == 3:
                    break
        pm.barrier()
        return worker.clock, worker.pull(table, range(30))[:, 0].tolist()

    def main(pm):
        table = pm.create_table("t", 30, 4, optimizer=intentpm.optim.SGD(lr=1.0))
        return use(pm, table, pm.worker())

    expected = np.zeros(30)
    for batch in BATCHES[:4] * 2:
        np.subtract.at(expected, batch.reshape(-1).numpy(), 2)
    assert run_ranks(2, main, sync="exact", clock_timeout=20) == [(8, expected.tolist())] * 2


@pytest.mark.parametrize("at", [0, 7])
def test_what_the_loader_raises_comes_after_the_batches_before_it(at: int) -> None:
    def failing():
        yield from BATCHES[:at]
        raise KeyError("in the loader")

    def use(pm, table, worker):
        batches = iter(IntentLoader(worker, failing(), {table: same}))
        assert [next(batches) is expected for expected in BATCHES[:at]] == [True] * at
        with pytest.raises(KeyError, match="in the loader"):
            next(batches)

    with_worker(use)


def test_keys_out_of_range_are_an_error_of_the_loop() -> None:
    def use(pm, table, worker):
        with pytest.raises(intentpm.KeyRangeError, match="key 1000 "):
            list(IntentLoader(worker, [torch.tensor([1000])], {table: same}))

    with_worker(use)


def test_somebody_else_s_clock_moves_the_windows_along() -> None:
    """An evaluation in the middle of an epoch, on the same worker."""

    def use(pm, table, worker):
        training = IntentLoader(worker, BATCHES, {table: same}, ahead=6)
        for count, batch in enumerate(training):
            if count == 10:
                list(IntentLoader(worker, BATCHES, {table: same}))
            if count > 11:
                intended = pm.explain(table, int(batch[0, 0])).intents
                assert any(intent.start <= worker.clock < intent.end for intent in intended), count
        return count

    assert with_worker(use, 2) == [19, 19]


def test_auto_reads_as_far_as_the_horizon_and_memory_allow() -> None:
    def use(pm, table, worker):
        pulled = 0

        def counting():
            nonlocal pulled
            for _ in range(40):
                pulled += 1
                yield np.zeros(100 << 20, np.uint8)  # never touched: it takes no memory

        most = 0
        loader = IntentLoader(worker, counting(), {table: lambda batch: [1]})
        for used, _ in enumerate(loader, 1):
            most = max(most, pulled - used if used > 10 else 0)
        assert loader.ahead == 2, "256 MB hold two of them"
        assert most <= 4
        small = IntentLoader(worker, BATCHES * 4, {table: same})
        list(small)
        assert small.ahead >= pm.stats()["workers"][0]["horizon_clocks"] or small.ahead >= 4

    with_worker(use)


class Resumable:
    """A loader in the way of torchdata's StatefulDataLoader."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self):
        while self.at < len(BATCHES):
            self.at += 1
            yield BATCHES[self.at - 1]
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def test_a_state_is_that_of_the_batch_in_use_not_of_what_was_read_ahead() -> None:
    def use(pm, table, worker):
        loader = IntentLoader(worker, Resumable(), {table: same}, ahead=8)
        for count, _ in enumerate(loader):
            if count == 4:
                state = loader.state_dict()
                break
        resumed = IntentLoader(worker, Resumable(), {table: same}, ahead=8)
        resumed.load_state_dict(state)
        assert next(iter(resumed)) is BATCHES[5]
        assert not hasattr(IntentLoader(worker, BATCHES, {table: same}), "state_dict")

    with_worker(use)


def data_loader(**options):
    dataset = torch.utils.data.TensorDataset(torch.arange(40))
    return torch.utils.data.DataLoader(dataset, batch_size=4, **options)


def keys_of(batch):
    return batch[0]


def test_a_shuffling_data_loader_gives_the_order_of_a_plain_loop() -> None:
    def use(pm, table, worker):
        torch.manual_seed(3)
        expected = torch.cat([batch[0] for batch in data_loader(shuffle=True)])
        torch.manual_seed(3)
        loader = IntentLoader(worker, data_loader(shuffle=True), {table: keys_of})
        assert torch.equal(torch.cat([batch[0] for batch in loader]), expected)

    with_worker(use)


def test_a_sampler_s_epoch_is_set_through_it() -> None:
    def use(pm, table, worker):
        dataset = torch.utils.data.TensorDataset(torch.arange(40))
        sampler = torch.utils.data.DistributedSampler(dataset, num_replicas=pm.size, rank=pm.rank, seed=1)
        loader = IntentLoader(worker, torch.utils.data.DataLoader(dataset, 4, sampler=sampler), {table: keys_of})
        orders = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            orders.append(torch.cat([batch[0] for batch in loader]))
        assert not torch.equal(*orders)
        return orders[1].tolist()

    assert sorted(itertools.chain(*with_worker(use, 2))) == list(range(40))


@pytest.mark.parametrize("options", [{}, {"multiprocessing_context": "fork"}])  # fork is the default before Python 3.14
@pytest.mark.skipif(multiprocessing.get_all_start_methods()[0] != "fork", reason="Python does not fork by default")
def test_forked_workers_are_refused_with_the_way_out(options) -> None:
    def use(pm, table, worker):
        with pytest.raises(intentpm.ForkError, match='multiprocessing_context="forkserver"'):
            IntentLoader(worker, data_loader(num_workers=2, **options), {table: keys_of})

    with_worker(use)


@pytest.mark.parametrize(("method", "processes"), [("forkserver", 2), ("spawn", 1)])
def test_worker_processes(method: str, processes: int) -> None:
    def use(pm, table, worker):
        loader = data_loader(num_workers=processes, multiprocessing_context=method, persistent_workers=True)
        announcing = IntentLoader(worker, loader, {table: keys_of})
        for _ in range(2):
            assert torch.equal(torch.cat([batch[0] for batch in announcing]), torch.arange(40))

    with_worker(use)


@pytest.mark.parametrize("scheme", ["naive", "preloc", "pool", "local"])
def test_negative_samples_take_two_lines(scheme: str) -> None:
    def use(pm, table, worker):
        embedding = Embedding(table, worker)
        sampling = pm.create_sampling(table, scheme=scheme, seed=1)
        loader = IntentLoader(worker, BATCHES, {table: same}, samples={sampling: 16})
        drawn = []
        for _ in loader:
            negatives = loader.sample(sampling)
            assert torch.equal(negatives, loader.sample(sampling)), "the same for one batch"
            assert embedding(negatives).shape == (16, 4)
            drawn.append(negatives)
        assert not torch.equal(drawn[0], drawn[1])
        with pytest.raises(intentpm.SampleError, match="no sample of"):
            loader.sample(sampling)

    with_worker(use)


def test_arguments_that_cannot_be_used() -> None:
    def use(pm, table, worker):
        with pytest.raises(intentpm.ConfigError, match="ahead=-1"):
            IntentLoader(worker, BATCHES, {table: same}, ahead=-1)
        loader = IntentLoader(worker, BATCHES, {table: same})
        first = iter(loader)
        next(first)
        with pytest.raises(intentpm.ConfigError, match="being iterated"):
            next(iter(loader))
        first.close()

    with_worker(use)
