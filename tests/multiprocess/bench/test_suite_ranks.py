"""Smoke runs of the suite's parts that start ranks: what they return can be told apart, written, compared and drawn."""

import importlib
import math

import pytest

from intentpm.bench.benchmarks import SUBJECT, describe_case, read_benchmarks, write_benchmarks
from intentpm.bench.plots import save_benchmarks
from intentpm.bench.scenarios.growth import exponent
from intentpm.bench.scenarios.scaling import simulate_zipf

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(400)]

EFFORT = 0.05
PARTS = {
    "memory": {"memory per key and rank", "memory per replica", "memory per signalled key"},
    "idle_cost": {"processor time", "bytes sent"},
    "turns": {"due to local", "relocation"},
    "refresh": {"refresh", "staleness", "age when read"},
    "scaling": {"zipf step", "zipf bytes per step", "zipf messages per step", "zipf remote accesses"},
    "growth": {"pull", "round", "intent", "memory", "round, messages"},
}


@pytest.mark.parametrize("name", PARTS)
def test_part(name, tmp_path):
    cases = importlib.import_module(f"intentpm.bench.scenarios.{name}").measure(EFFORT)
    assert PARTS[name] <= {case.operation for case in cases if case.by == SUBJECT}
    told = {(case.by, describe_case({"operation": case.operation, "unit": case.unit, **case.info})) for case in cases}
    assert len(told) == len(cases)
    for case in cases:
        assert case.samples or case.operation in ("refresh", "age when read"), case  # so short a period may have none
        if case.operation != "staleness":  # no refresh may have been acknowledged in a period so short
            assert all(math.isfinite(sample) and sample >= 0 for sample in case.samples), case
    assert name == "refresh" or any(case.by != SUBJECT for case in cases), "nothing to compare with"
    write_benchmarks(tmp_path / "cases.json", name, cases)
    save_benchmarks(read_benchmarks(tmp_path / "cases.json"), tmp_path / "picture.png")


def test_idle_replicas_cost_no_bytes():
    from intentpm.bench.scenarios import idle_cost

    sent = [case for case in idle_cost.measure(EFFORT) if case.operation == "bytes sent"]
    assert sent
    assert all(case.samples == [0, 0] for case in sent)


def test_a_simulated_job_is_the_same_each_time():
    arguments = {"num_keys": 500, "dim": 4, "batch": 20, "steps": 10, "seed": 3, "look_ahead": 4, "step_us": 50}
    first, again = (simulate_zipf(4, "adaptive", arguments) for _ in range(2))
    del first["real_s"], again["real_s"]
    assert first == again
    assert first["remote_share"] < 0.1
    assert first["seconds"] >= 10 * 50e-6


def test_exponent():
    assert exponent([(1, 3), (10, 30), (100, 300)]) == pytest.approx(1)
    assert exponent([(1, 5), (100, 5)]) == pytest.approx(0)
    assert exponent([(2, 4), (4, 16)]) == pytest.approx(2)
