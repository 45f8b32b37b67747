"""The suite's command: it runs parts, keeps each run's file, judges and draws what it has; its parts on one rank."""

import numpy as np
import pytest
from click.testing import CliRunner

from intentpm.bench.accesses import MEANS, access, keys_for
from intentpm.bench.benchmarks import SUBJECT, Case, read_benchmarks
from intentpm.bench.cli import bench
from intentpm.bench.keys import draw_keys
from intentpm.bench.latency.local_tables import chosen_tables, round_down
from intentpm.bench.scenarios import memory, threads
from intentpm.bench.suite.targets import TARGETS


def suite(*arguments):
    return CliRunner().invoke(bench, ["suite", *map(str, arguments)])


@pytest.fixture
def measured(monkeypatch):
    """What ``threads`` and ``memory`` measure; a function of the runs so far."""
    calls = {"threads": 0, "memory": 0}

    def fake(name, cases):
        def measure(effort):
            calls[name] += 1
            return cases(calls[name])

        return measure

    info = {"keys": 10_000, "situation": "same keys", "num_keys": 9}

    def rates(run):
        return [Case("pull", [1e-8 / n * run], unit="s/row", info=info | {"threads": n}) for n in (1, 2)]

    def fails_later(run):
        if run > 1:
            raise RuntimeError("the network is down")
        return [Case("memory per key and rank", [11.0], unit="B", info={"situation": "new table"})]

    monkeypatch.setattr(threads, "measure", fake("threads", rates))
    monkeypatch.setattr(memory, "measure", fake("memory", fails_later))


def test_command_writes_everything_and_prints_the_table(tmp_path, measured):
    (tmp_path / "threads-7.json").write_text("of an earlier run")
    done = suite("--part", "threads", "--repeats", 3, "--effort", 0.5, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "threads: run 3 of 3, 2 cases in" in done.output
    assert f"1 of 1 measured targets reached, {len(TARGETS) - 1} not measured" in done.output
    assert "no case has operation memory per key and rank: 2 targets" in done.output
    assert sorted(path.name for path in tmp_path.glob("*.json")) == [f"threads-{n}.json" for n in (1, 2, 3)]
    page = (tmp_path / "targets.md").read_text()
    assert "| 1 thread 50.0 M rows/s | 100 M rows/s (66.7 to 200) | 2.00 | >= 1.7 x baseline | yes |" in page
    assert "Runs: 3." in page
    assert (tmp_path / "threads.png").read_bytes()[:4] == b"\x89PNG"


def test_command_judges_earlier_results(tmp_path, measured):
    suite("--part", "threads", "--repeats", 2, "--out", tmp_path)
    judged = suite("--no-run", "--out", tmp_path)
    assert judged.exit_code == 0, judged.output
    assert "1 of 1 measured targets reached" in judged.output
    (tmp_path / "memory-1.json").write_text('{"bench": "other"}')
    refused = suite("--no-run", "--out", tmp_path)
    assert refused.exit_code == 1
    assert "memory-1.json: is not a file of measured cases" in refused.output
    assert suite("--no-run", "--out", tmp_path / "none").exit_code == 1


def test_a_part_that_fails_stops_no_other(tmp_path, measured):
    done = suite("--part", "memory", "--part", "threads", "--repeats", 3, "--out", tmp_path)
    assert done.exit_code == 1
    assert "memory: FAILED: the network is down" in done.output
    assert "RuntimeError: the network is down" in done.output
    assert [path.name for path in tmp_path.glob("memory-*.json")] == ["memory-1.json"]
    assert len(list(tmp_path.glob("threads-*.json"))) == 3


def test_command_refuses_unknown_parts():
    result = suite("--part", "everything")
    assert result.exit_code == 2
    assert all(name in result.output for name in ("local", "ranks"))


def test_local_latencies_are_a_part(tmp_path):
    done = suite("--part", "local", "--effort", 0.02, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    cases = read_benchmarks(tmp_path / "local-1.json")
    assert {case["extra_info"]["by"] for case in cases} >= {SUBJECT, "np.take", "memcpy", "np indexed store"}
    assert {case["extra_info"]["keys"] for case in cases} == {1, 10, 100, 1_000, 10_000, 100_000}
    assert len({(case["group"], case["name"]) for case in cases}) == len(cases)
    assert "of 8 measured targets reached" in done.output


def test_threads_measure_all_means():
    cases = threads.measure(0.01)
    assert {case.info["threads"] for case in cases} == {1, 2, 4}
    assert {case.by for case in cases} >= {SUBJECT, "np.take", "np.add.at"}
    assert all(0 < sample < 1 for case in cases for sample in case.samples)


@pytest.mark.parametrize(("operation", "by"), [(name, by) for name, means in MEANS.items() for by in means[1:]])
def test_the_means_do_what_they_are_compared_with(operation, by):
    if by.startswith("torch"):
        pytest.importorskip("torch")
    array, rows = np.zeros((10, 2), np.float32), np.full((3, 2), 5, np.float32)
    access(operation, by, None, None, array, rows)(keys_for(by, np.array([1, 4, 4])))
    plain = by in ("memcpy", "np.add in place")
    if operation == "pull":
        assert (rows == (1 if plain else 0)).all()
    elif not plain:
        assert array[[1, 4]].tolist() == ([[5, 5], [10, 10]] if operation == "push" else [[5, 5], [5, 5]])
        assert array.sum() == array[[1, 4]].sum()


def test_tables_fit_into_the_memory():
    assert chosen_tables(False) == [(1_000_000, 64)]
    every = chosen_tables(True)
    assert {dim for _, dim in every} == {1, 16, 64, 256}
    assert all(4 * num_keys * dim <= 2_560_000_000 for num_keys, dim in every)
    assert [round_down(n) for n in (1, 9, 19, 50, 9_999_999)] == [1, 5, 10, 50, 5_000_000]


def test_keys_are_in_range_and_zipf_has_hot_ones():
    random = np.random.default_rng(0)
    for num_keys in (1, 7, 100_000):
        for distribution in ("uniform", "zipf"):
            keys = draw_keys(random, distribution, num_keys, 5_000)
            assert (keys.dtype, keys.shape) == (np.int64, (5_000,))
            assert keys.min() >= 0
            assert keys.max() < num_keys
    hottest = {name: np.bincount(draw_keys(random, name, 100_000, 5_000)).max() for name in ("uniform", "zipf")}
    assert hottest["zipf"] > 10 * hottest["uniform"]
