"""Sampling access: schemes, what they signal, samples pulled in parts, misuse. The draws themselves: test_draws.py."""

import numpy as np
import pytest

from intentpm.foundation.errors import Error, SampleError, WindowError
from intentpm.testing import run_ranks

KEYS = 300
SCHEMES = ("naive", "preloc", "pool", "local")
DISTRIBUTIONS = {
    "uniform": ("uniform", np.full(KEYS, 1 / KEYS)),
    "log-uniform": ("log-uniform", np.log1p(1 / (1 + np.arange(KEYS))) / np.log(KEYS + 1)),
    "weighted": (np.arange(KEYS), np.arange(KEYS) / np.arange(KEYS).sum()),
}


def make_table(pm, num_keys=KEYS):
    """Row k holds 10 k and 10 k + 1."""
    return pm.create_table("table", num_keys, (2,), init=lambda keys: 10.0 * keys[:, None] + np.arange(2))


def on_one_rank(body):
    return run_ranks(1, body, seed=5)[0]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("replacement", [True, False])
def test_samples_follow_the_distribution(scheme, distribution, replacement):
    declared, probabilities = DISTRIBUTIONS[distribution]
    size = 100 if replacement else 1

    def body(pm):
        table, worker = make_table(pm), pm.worker()
        # With a single use, the pool's keys are independent as well.
        pm.create_sampling(table, declared, scheme, replacement, pool_uses=1, pool_size=100 if replacement else 1)
        keys = []
        for clock in range(60_000 // size):
            drawn, rows = worker.pull_sample(worker.prepare_sample(table, size, clock))
            assert (rows == 10.0 * drawn[:, None] + np.arange(2)).all()
            keys.append(drawn)
        return np.concatenate(keys)

    stats = pytest.importorskip("scipy.stats")
    counts = np.bincount(on_one_rank(body), minlength=KEYS)
    possible = probabilities > 0
    assert not counts[~possible].any()
    p_value = stats.chisquare(counts[possible], probabilities[possible] * counts.sum()).pvalue
    assert p_value > 1e-4, f"{scheme} does not follow {distribution}: p = {p_value}"


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_without_replacement_keys_are_distinct_over_all_parts(scheme, distribution):
    def body(pm):
        table, worker = make_table(pm), pm.worker()
        pm.create_sampling(table, DISTRIBUTIONS[distribution][0], scheme, replacement=False, pool_size=200)
        for clock in range(20):
            sample = worker.prepare_sample(table, 120, clock, clock + 3)
            parts = [worker.pull_sample(sample, n)[0] for n in (50, 0, 69)] + [worker.pull_sample(sample)[0]]
            assert [len(part) for part in parts] == [50, 0, 69, 1]
            assert len(np.unique(np.concatenate(parts))) == 120

    on_one_rank(body)


def test_the_pool_is_reused_and_then_refreshed():
    def body(pm):
        table, worker = make_table(pm, 100_000), pm.worker()
        pm.create_sampling(table, scheme="pool", pool_size=64, pool_uses=4)
        return [worker.pull_sample(worker.prepare_sample(table, 32, 0))[0] for _ in range(16)]

    samples = on_one_rank(body)
    first, second = np.concatenate(samples[:8]), np.concatenate(samples[8:])
    # Four uses of a pool are the same 64 keys, each four times, in other orders; then come others.
    for pool in (first, second):
        assert (np.unique(pool, return_counts=True)[1] == 4).sum() >= 62
    assert len(np.intersect1d(first, second)) < 5
    assert (samples[0] != samples[2]).any()


class Recorder:
    """A worker that notes the intents it is given."""

    worker_id = 0
    clock = 0

    def __init__(self):
        self.intents = []

    def intent(self, table, keys, start, end=None):
        self.intents.append((table, keys.copy(), start, start + 1 if end is None else end))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_who_signals_intent(scheme):
    def body(pm):
        table, worker = make_table(pm), Recorder()
        sampling = pm.create_sampling(table, scheme=scheme)
        sample = sampling.prepare(worker, 7, 3, None)
        assert (sample.keys is not None) == bool(worker.intents) == (scheme in ("preloc", "pool"))
        worker.clock = 3
        return sampling.take(sample, worker, None), [intent[1:] for intent in worker.intents]

    keys, intents = on_one_rank(body)
    if scheme == "naive":
        assert intents == []
    else:
        ((signalled, start, end),) = intents
        assert np.unique(signalled).tolist() == np.unique(keys).tolist()
        assert (start, end) == (3, 4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_seeds(scheme):
    """The same seed: the same keys. Workers of a rank, and ranks, have streams of their own."""

    def body(pm):
        table = make_table(pm)
        sampling = pm.create_sampling(table, scheme=scheme, pool_size=50)
        workers = [pm.worker(), pm.worker()]
        return [worker.pull_sample(worker.prepare_sample(sampling, 50, 0))[0].tolist() for worker in workers]

    first, second = run_ranks(2, body, seed=5)
    assert [first, second] == run_ranks(2, body, seed=5)
    streams = [tuple(keys) for keys in (*first, *second)]
    assert len(set(streams)) == 4
    assert run_ranks(1, body)[0] != run_ranks(1, body)[0], "without a seed two jobs draw the same"


def test_local_samples_need_no_network():
    def body(pm):
        table, worker = make_table(pm, 2000), pm.worker()
        sampling = pm.create_sampling(table, "log-uniform", "local")
        pm.barrier()
        own = table.owned_keys()
        keys = np.concatenate([worker.pull_sample(worker.prepare_sample(table, 50, 0))[0] for _ in range(400)])
        assert np.isin(keys, own).all()
        assert pm.stats()["tables"]["table"]["remote"] == 0
        pm.barrier()
        p = np.log1p(1 / (1 + own)) / np.log(2001)
        counts = np.array([np.count_nonzero(keys == key) for key in own[:10]])
        np.testing.assert_allclose(counts, len(keys) * p[:10] / p.sum(), atol=5 * np.sqrt(len(keys) * p[0]))
        return sampling.stats(), 1 - p.sum()

    for stats, departure in run_ranks(2, body, seed=1):
        assert stats["drawn"] == stats["drawn_local"] == 20_000
        assert stats["departure"] == pytest.approx(departure, abs=1e-9)
        assert stats["local_keys"] == pytest.approx(1000, abs=20)


def test_local_samples_are_of_owned_keys():
    """Not of replicas: what is written to them would have to be sent."""

    def body(pm):
        table, worker = make_table(pm, 400), pm.worker()
        worker.intent(table, np.arange(400), 0, 100)
        worker.wait_sync()
        pm.barrier()
        replicas = pm.stats()["replicas_held"]
        pm.create_sampling(table, scheme="local")
        keys, _ = worker.pull_sample(worker.prepare_sample(table, 5_000, 0))
        own = table.owned_keys()
        pm.barrier()
        assert replicas == 400 - len(own)
        assert np.isin(keys, own).all()

    run_ranks(2, body, seed=1, management="replicate")


def test_local_samples_stay_until_the_clock_advances():
    """A key that another rank wants meanwhile is lent to it: what is learnt of it here is written here."""

    def body(pm):
        table, worker = make_table(pm, 400), pm.worker()
        pm.create_sampling(table, scheme="local")
        sampled = np.empty(0, np.int64)
        if pm.rank == 0:
            sampled = np.unique(worker.pull_sample(worker.prepare_sample(table, 60, 0))[0])
            worker.wait_sync()
        pm.barrier()
        if pm.rank == 1:
            worker.intent(table, np.arange(400), 0)
            worker.wait_sync()
        pm.barrier()
        return sampled, table.owned_keys()

    (sampled, owned), _ = run_ranks(2, body, seed=1)
    assert owned.tolist() == sampled.tolist(), "the others moved, these did not"


def test_a_worker_without_clocks_holds_no_more_than_a_table():
    def body(pm):
        table, worker = make_table(pm), Recorder()
        sampling = pm.create_sampling(table, scheme="local")
        for _ in range(50):
            sampling.take(sampling.prepare(worker, 30, 0, None), worker, None)
        held = sum(len(keys) for _, keys, _, _ in worker.intents)
        worker.clock += 1
        sampling.take(sampling.prepare(worker, 30, 1, None), worker, None)
        return held, worker.intents[-1][2]

    held, last = on_one_rank(body)
    assert KEYS <= held <= KEYS + 30
    assert last == 1


def test_naive_samples_read_rows_of_other_ranks():
    def body(pm):
        table, worker = make_table(pm), pm.worker()
        pm.create_sampling(table, scheme="naive")
        keys, rows = worker.pull_sample(worker.prepare_sample(table, 200, 0))
        pm.barrier()
        assert (rows == 10.0 * keys[:, None] + np.arange(2)).all()
        return pm.stats()["tables"]["table"]["remote"]

    assert all(50 < remote < 150 for remote in run_ranks(2, body, seed=1))


@pytest.mark.parametrize("scheme", ["preloc", "pool"])
def test_keys_with_intent_are_local_when_pulled(scheme):
    def body(pm):
        table, worker = make_table(pm), pm.worker()
        pm.create_sampling(table, scheme=scheme)
        sample = worker.prepare_sample(table, 200, 1, 2)
        worker.wait_sync()
        worker.advance_clock()
        worker.pull_sample(sample)
        counts = pm.stats()["tables"]["table"]
        pm.barrier()
        return counts["local"] + counts["replica"], counts["remote"]

    # A key that is just moving from one rank to the other may have to be asked for.
    assert all(here + remote == 200 and remote <= 10 for here, remote in run_ranks(2, body, seed=1))


def test_local_falls_back_where_hardly_anything_is_local():
    def body(pm):
        table, worker = make_table(pm, 400), pm.worker()
        sampling = pm.create_sampling(table, scheme="local")
        pm.barrier()
        if pm.rank == 0:
            # A quarter of the fair share of 200 is enough to draw from; one key less is not.
            own = table.owned_keys()
            table.disown(own[50:])
            worker.prepare_sample(table, 10, 0)
            sample = worker.prepare_sample(table, 10, 0)
            assert np.isin(sampling.take(sample, worker, None), own[:50]).all()
            table.disown(own[49:50])
            fresh = pm.create_sampling(table, scheme="local")
            fresh.take(worker.prepare_sample(table, 1000, 0), worker, None)
            assert fresh.stats()["drawn_local"] == 0
            table.adopt(own[49:], None)
        pm.barrier()

    run_ranks(2, body, seed=1)


def test_a_table_without_a_declared_sampling_has_the_defaults():
    def body(pm):
        table, worker = make_table(pm), pm.worker()
        keys, rows = worker.pull_sample(worker.prepare_sample(table, 5, 0))
        assert len(keys) == len(rows) == 5
        return repr(pm.sampling(table))

    assert on_one_rank(body) == "<intentpm.Sampling of 'table', preloc, with replacement>"


WRONG = [
    ({"distribution": "zipf"}, "choose uniform"),
    ({"scheme": "nearby"}, "choose one of naive"),
    ({"distribution": np.ones(3)}, r"shape \(3,\)"),
    ({"distribution": np.full(KEYS, "a")}, "dtype <U1"),
    ({"distribution": np.r_[np.ones(KEYS - 1), -1]}, "weight of key 299 is -1"),
    ({"distribution": np.r_[np.nan, np.ones(KEYS - 1)]}, "weight of key 0 is nan"),
    ({"distribution": np.zeros(KEYS)}, "add up to 0"),
    ({"distribution": np.full(KEYS, 1e308)}, "add up to inf"),
    ({"scheme": "pool", "pool_size": 0}, "pool_size=0"),
    ({"scheme": "pool", "pool_uses": 0}, "pool_uses=0"),
    ({"scheme": "pool", "pool_size": KEYS + 1, "replacement": False}, "has only 300 keys"),
]


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_declarations_that_cannot_be_used(arguments, message):
    def body(pm):
        with pytest.raises(SampleError, match=message):
            pm.create_sampling(make_table(pm), **arguments)

    on_one_rank(body)


def test_samples_that_cannot_be_prepared_or_pulled():
    def body(pm):
        table, worker, other = make_table(pm), pm.worker(), pm.worker()
        sampling = pm.create_sampling(table, np.r_[np.ones(5), np.zeros(KEYS - 5)], replacement=False)
        with pytest.raises(WindowError, match=r"\[4, 4\)"):
            worker.prepare_sample(table, 1, 4, 4)
        with pytest.raises(SampleError, match="of -1 keys"):
            worker.prepare_sample(table, -1, 0)
        with pytest.raises(SampleError, match=r"of 6 keys.*only 5 keys"):
            worker.prepare_sample(table, 6, 0)
        sample = worker.prepare_sample(sampling, 5, 0)
        with pytest.raises(SampleError, match="cannot pull it"):
            other.pull_sample(sample)
        with pytest.raises(SampleError, match="cannot pull 6 keys of a sample with 5 of 5 left"):
            worker.pull_sample(sample, 6)
        assert sorted(worker.pull_sample(sample)[0]) == [0, 1, 2, 3, 4]
        with pytest.raises(SampleError, match="with 0 of 5 left"):
            worker.pull_sample(sample, 1)
        pool = pm.create_sampling(table, scheme="pool", pool_size=10, replacement=False)
        with pytest.raises(SampleError, match="raise pool_size"):
            worker.prepare_sample(pool, 11, 0)
        return worker, table

    worker, table = on_one_rank(body)
    with pytest.raises(Error, match="closed"):
        worker.prepare_sample(table, 1, 0)
