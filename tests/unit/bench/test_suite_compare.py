"""``intentpm bench compare``: verdicts that respect the noise, on any results file with rows."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from intentpm.bench.cli import bench
from intentpm.bench.results import Row, write_results
from intentpm.bench.suite.compare import compare, rows_with_samples


def row(samples, name="pull", unit="s", run=None, **sizes):
    facts = {"by": "intentpm"} | ({} if run is None else {"run": run})
    return {
        "name": name, "samples": list(samples), "unit": unit, "transport": "none", "ranks": 1,
        "sizes": sizes, "facts": facts,
    }  # fmt: skip


def noisy(median, count=30, spread=0.02, seed=0):
    return np.random.default_rng(seed).normal(median, spread * median, count)


def verdict(old, new, threshold=0.05, unit="s"):
    (one,) = compare([row(old, unit=unit)], [row(new, unit=unit)], threshold)
    return one.verdict


def test_a_clear_change_has_a_direction():
    assert verdict(noisy(10), noisy(8, seed=1)) == "better"
    assert verdict(noisy(8), noisy(10, seed=1)) == "worse"
    assert verdict(noisy(10), noisy(8, seed=1), unit="rows/s") == "worse"
    assert verdict(noisy(8), noisy(10, seed=1), unit="B/s") == "better"
    assert verdict(noisy(10), noisy(8, seed=1), unit="B") == "better"


def test_noise_is_no_change():
    assert verdict(noisy(10), noisy(10, seed=1)) == "same"
    assert verdict(noisy(10, 8, spread=0.6), noisy(8, 8, spread=0.6, seed=1)) == "same"


def test_a_small_change_counts_only_below_the_threshold():
    old, new = noisy(10, 500), noisy(9.7, 500, seed=1)
    assert verdict(old, new) == "same"
    assert verdict(old, new, threshold=0.01) == "better"


def test_few_samples_decide_nothing():
    assert verdict([1.0] * 4, [9.0] * 30) == "too few samples"
    assert verdict([1.0], [9.0]) == "too few samples"


def test_zeros_do_not_divide():
    (one,) = compare([row([0] * 9)], [row([0] * 9)], 0.05)
    assert (one.ratio, one.verdict) == (1.0, "same")
    (one,) = compare([row([0] * 9)], [row([5] * 9)], 0.05)
    assert np.isnan(one.ratio)
    assert one.verdict == "worse"


def test_only_common_cases_and_all_their_runs_are_compared():
    old = [row(noisy(10), run=0, keys=1), row(noisy(10), run=1, keys=1), row(noisy(1), keys=2)]
    new = [row(noisy(20), keys=1), row(noisy(1), keys=3), row(noisy(1), name="push", keys=2)]
    (one,) = compare(old, new, 0.05)
    assert one.case == "pull, keys 1, by intentpm"
    assert one.old == pytest.approx(10, rel=0.05)
    assert one.ratio == pytest.approx(2, rel=0.05)


def test_rows_of_training_runs_are_left_out():
    assert rows_with_samples({"rows": [{"epoch": 1, "seconds": 2.0}, row([1.0])]}) == [row([1.0])]
    assert rows_with_samples({}) == []


def run_compare(*arguments):
    return CliRunner().invoke(bench, ["compare", *map(str, arguments)])


def test_command(tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    write_results(old, "bench x", {}, [Row("pull", noisy(10e-6)), Row("push", noisy(5e-6))])
    write_results(new, "bench x", {}, [Row("pull", noisy(5e-6)), Row("push", noisy(5e-6)), Row("set", [1.0])])
    result = run_compare(old, new)
    assert result.exit_code == 0
    assert "2 cases in common: 1 better, 0 worse, 1 same" in result.output
    assert "different machines" not in result.output
    changed = run_compare(old, new, "--changed")
    assert "pull" in changed.output
    assert "push" not in changed.output
    document = json.loads(old.read_text())
    document["environment"]["cpu"] = "another"
    old.write_text(json.dumps(document))
    assert "note: measured on different machines (cpu another and" in run_compare(old, new).output


@pytest.mark.parametrize("content", ["", "[]", '{"bench": "x"}', '{"rows": []}', "\udcff"])
def test_command_refuses_other_files(tmp_path, content):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    write_results(good, "bench x", {}, [Row("pull", [1.0])])
    bad.write_bytes(content.encode(errors="surrogateescape"))
    result = run_compare(good, bad)
    assert result.exit_code == 1
    assert "bad.json" in result.output
