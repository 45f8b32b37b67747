"""Smoke runs of the suite's parts that start ranks: what they return can be told apart, compared, written and drawn."""

import json
import math

import pytest
from matplotlib.figure import Figure

from intentpm.bench.results import write_results
from intentpm.bench.scenarios.simulated_zipf import simulate_zipf
from intentpm.bench.suite.growth import exponent
from intentpm.bench.suite.parts import SUBJECT, load

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(400)]

EFFORT = 0.05
PARTS = {
    "remote": {"pull", "push"},
    "busy_server": {"pull"},
    "due_to_local": {"due to local"},
    "relocation": {"relocation, rows", "relocation, bytes"},
    "refresh": {"refresh, rows", "refresh, bytes", "staleness", "age when read"},
    "scaling": {"zipf step", "zipf bytes per step", "zipf messages per step", "zipf local accesses"},
    "growth": {"pull", "round", "intent", "memory", "round, messages"},
}


def case(row):
    """What tells rows apart."""
    facts = row["facts"]
    return (row["name"], facts["by"], facts.get("situation"), row["transport"], row["ranks"], *row["sizes"].items())


@pytest.mark.parametrize("name", PARTS)
def test_part(name, tmp_path):
    part = load(name)
    rows = write_results(tmp_path / "results.json", name, {}, part.measure(EFFORT))["rows"]
    assert PARTS[name] <= {row["name"] for row in rows if row["facts"]["by"] == SUBJECT}
    assert len({case(row) for row in rows}) == len(rows)
    for row in rows:
        assert row["samples"], case(row)
        if row["name"] != "staleness":  # no refresh may have been acknowledged in a period so short
            assert all(math.isfinite(sample) and sample >= 0 for sample in row["samples"]), case(row)
    if name != "refresh":
        assert any(row["facts"]["by"] != SUBJECT for row in rows), "nothing to compare with"
    figure = Figure()
    part.draw(json.loads((tmp_path / "results.json").read_text())["rows"], figure)
    figure.savefig(tmp_path / "picture.png")


def test_a_simulated_job_is_the_same_each_time():
    arguments = {"num_keys": 500, "dim": 4, "batch": 20, "steps": 10, "seed": 3, "look_ahead": 4, "step_us": 50}
    first, again = (simulate_zipf(4, "adaptive", arguments) for _ in range(2))
    del first["real_s"], again["real_s"]
    assert first == again
    assert first["local_share"] > 0.9
    assert first["virtual_s"] >= 10 * 50e-6


def test_exponent():
    assert exponent([(1, 3), (10, 30), (100, 300)]) == pytest.approx(1)
    assert exponent([(1, 5), (100, 5)]) == pytest.approx(0)
    assert exponent([(2, 4), (4, 16)]) == pytest.approx(2)
