"""Regret: adaptive management against the best fixed mode, from runs."""

import math

import pytest

from intentpm.bench.scenarios.networks import Network, _epochs_needed
from intentpm.bench.scenarios.regret import compare, table


def run(mode, seconds, megabytes=1.0, workload="mf", network="4x50mbit", quality=None):
    return {
        "workload": workload, "network": network, "mode": mode,
        "seconds": seconds, "megabytes": megabytes, "quality": quality,
    }  # fmt: skip


def test_it_is_against_the_fixed_mode_that_is_fastest_in_the_median():
    runs = [run("adaptive", 3.0, 30.0)]
    runs += [run("static", seconds, 10.0) for seconds in (1.0, 4.0, 9.0)]  # its fastest run does not count
    runs += [run("replicate", 2.0, 60.0)]
    (found,) = compare(runs)
    assert (found.best.mode, found.in_time, found.in_bytes) == ("replicate", 1.5, 0.5)


def test_a_mode_that_does_not_reach_the_quality_is_never_the_best():
    (found,) = compare([run("adaptive", 5.0), run("static", None), run("relocate", 50.0)])
    assert (found.best.mode, found.in_time) == ("relocate", 0.1)
    assert "never" in table([found])[-1]
    (late,) = compare([run("adaptive", None), run("static", 2.0)])
    assert late.in_time == math.inf
    (both,) = compare([run("adaptive", None), run("static", None)])
    assert math.isnan(both.in_time)


def test_adapms_rule_is_shown_but_is_no_fixed_mode():
    (found,) = compare([run("adaptive", 2.0), run("static", 4.0), run("adapm", 1.0, 77.0)])
    assert (found.best.mode, found.in_time) == ("static", 0.5)
    assert "77 MB" in table([found])[-1]
    assert compare([run("adaptive", 2.0), run("adapm", 1.0)]) == []


def test_workloads_and_networks_are_apart_and_incomplete_ones_left_out():
    runs = [run(mode, 1.0, network=network) for network in ("a", "b") for mode in ("adaptive", "static")]
    runs += [run("adaptive", 1.0, network="one rank"), run("static", 1.0, workload="zipf")]
    assert [(each.workload, each.network) for each in compare(runs)] == [("mf", "a"), ("mf", "b")]
    assert len(table(compare(runs))) == 4


@pytest.mark.parametrize(
    ("workload", "qualities", "target", "epochs"),
    [
        ("mf", [0.9, 0.51, 0.5], 0.5, 2),
        ("mf", [0.9, 0.52, 0.511], 0.5, None),
        ("kge-local", [0.1, 0.246, 0.26], 0.25, 2),
        ("kge-local", [0.1, 0.24], 0.25, None),
        ("zipf", [0.3, 0.12, 0.101], 0.1, 3),
        ("zipf", [0.3], None, 1),
    ],
)
def test_epochs_until_the_quality_of_one_rank(workload, qualities, target, epochs):
    assert _epochs_needed(workload, qualities, target) == epochs


def test_networks_are_named_by_ranks_and_rate():
    assert Network.parse("4x200mbit") == Network("4x200mbit", 4, "200mbit")
    assert Network.parse("2xshm") == Network("2xshm", 2, "")
    for wrong in ("4", "x200mbit", "4x200", "0xshm", "4x200mbit; rm"):
        with pytest.raises(Exception, match="needs RANKSxRATE"):
            Network.parse(wrong)
