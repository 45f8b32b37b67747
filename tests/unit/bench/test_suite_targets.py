"""The table of targets picks the rows it means, and says what is missing."""

import pytest

from intentpm.bench.suite.cases import case_key, join_runs, runs_of
from intentpm.bench.suite.parts import PARTS, SUBJECT
from intentpm.bench.suite.report import cells, markdown_table, summary
from intentpm.bench.suite.targets import TARGETS, Goal, Pick, Target, judge, judge_all
from intentpm.bench.suite.units import plain, with_unit


def row(name, by, samples, *, unit="s", transport="none", ranks=1, run=0, sizes=None, **facts):
    return {
        "name": name, "samples": samples, "unit": unit, "transport": transport, "ranks": ranks,
        "sizes": sizes or {}, "facts": {"by": by, "run": run, **facts},
    }  # fmt: skip


def local(name, by, us, *, keys, num_keys=1000, run=0, situation="same keys", distribution="uniform"):
    return row(
        name, by, [0.5e-6 * us, 1e-6 * us, 9e-6 * us], run=run, situation=situation, distribution=distribution,
        sizes={"keys": keys, "dim": 64, "num_keys": num_keys},
    )  # fmt: skip


def find(what, results):
    (found,) = [verdict for verdict in judge_all(results) if verdict.what == what]
    return found


def test_every_target_names_a_part_that_exists():
    picks = [pick for target in TARGETS for pick in (target.own, *target.baselines, *target.limits)]
    assert {pick.part for pick in picks} <= set(PARTS)
    assert len({target.what for target in TARGETS}) == len(TARGETS)
    assert all(target.own.by == SUBJECT for target in TARGETS)


def test_an_absolute_target_is_judged_by_the_median():
    rows = [
        local("pull", SUBJECT, 0.3, keys=1),
        local("pull", "np.take", 0.6, keys=1),
        local("push", SUBJECT, 9, keys=1),
    ]
    verdict = find("local pull, 1 key", {"local": rows})
    assert (verdict.own, verdict.baseline, verdict.ratio) == ("0.300 us", "np.take 0.600 us", "0.50")
    assert (verdict.target, verdict.verdict, verdict.reached) == ("<= 0.4 us", "yes", True)
    rows[0] = local("pull", SUBJECT, 0.5, keys=1)
    assert find("local pull, 1 key", {"local": rows}).verdict == "no"


def test_the_largest_table_and_the_right_keys_are_picked():
    rows = [
        local("pull", SUBJECT, us, keys=keys, num_keys=num_keys, situation=situation, distribution=distribution)
        for us, keys, num_keys, situation, distribution in [
            (1, 10_000, 10**5, "same keys", "uniform"),
            (2, 10_000, 10**7, "same keys", "uniform"),
            (3, 10_000, 10**8, "same keys", "zipf"),
            (4, 10_000, 10**6, "fresh keys", "uniform"),
            (5, 1_000, 10**8, "same keys", "uniform"),
        ]
    ]
    rows += [local("pull", "np.take", 10, keys=10_000, num_keys=10**7)]
    verdict = find("local pull, 10,000 keys", {"local": rows})
    assert (verdict.own, verdict.ratio, verdict.reached) == ("2.00 us", "0.20", True)
    fresh = find("local pull, 10,000 keys, fresh in each call", {"local": rows})
    assert (fresh.own, fresh.reached, fresh.verdict) == ("4.00 us", None, "not measured: no baseline")


def test_ratios_are_taken_within_each_run():
    rows = []
    for run, (own, base) in enumerate([(1, 10), (30, 100), (5, 10), (2, 10), (900, 1000)]):
        rows += [
            local("pull", SUBJECT, own, keys=10_000, run=run),
            local("pull", "np.take", base, keys=10_000, run=run),
        ]
    verdict = find("local pull, 10,000 keys", {"local": rows})
    assert verdict.own == "5.00 us (1.00 to 900)"
    assert verdict.ratio == "0.30"  # of 0.1, 0.3, 0.5, 0.2, 0.9; the medians' would be 0.5


def test_the_first_baseline_that_was_measured_counts():
    rows = [local("push", SUBJECT, 1, keys=10_000), local("push", "np.add.at", 4, keys=10_000)]
    assert find("local push, 10,000 keys", {"local": rows}).baseline == "np.add.at 4.00 us"
    rows.append(local("push", "torch index_add_", 2, keys=10_000))
    assert find("local push, 10,000 keys", {"local": rows}).baseline == "torch index_add_ 2.00 us"


def test_two_threads_are_compared_with_one():
    sizes = {"keys": 10_000, "dim": 64, "num_keys": 10}
    rows = [
        row("push", SUBJECT, [rate], unit="rows/s", situation="same keys", sizes={**sizes, "threads": threads})
        for threads, rate in [(1, 40e6), (2, 72e6), (4, 80e6)]
    ]
    verdict = find("local push, 10,000 keys, 2 threads, same keys", {"threads": rows})
    assert (verdict.own, verdict.baseline, verdict.ratio) == ("72.0 M rows/s", "1 thread 40.0 M rows/s", "1.80")
    assert (verdict.target, verdict.reached) == (">= 1.7 x baseline", True)


def test_what_is_missing_is_said_and_not_reached():
    nothing = judge_all({})
    assert all(verdict.reached is None for verdict in nothing)
    assert all(verdict.verdict.startswith("not measured: part ") for verdict in nothing)
    assert summary(nothing) == f"0 of 0 measured targets reached, {len(TARGETS)} not measured"
    sizes = {"keys": 1}
    results = {"remote": [row("pull", SUBJECT, [1e-5], transport="tcp", sizes=sizes, situation="back to back")]}
    assert find("remote pull back to back, 1 key, tcp, p50", results).reached is True
    absent = find("remote pull back to back, 1 key, ucx-shm, p50", results)
    assert absent.verdict == "not measured: part remote has no transport ucx-shm"
    spaced = find("remote pull spaced, 1 key, tcp, p50", results)
    assert spaced.verdict == "not measured: part remote has no situation spaced"


def test_rows_without_samples_are_missing():
    results = {"local": [local("pull", SUBJECT, 1, keys=1) | {"samples": []}]}
    assert find("local pull, 1 key", results).verdict == "not measured: has no samples"


def test_peers_are_compared_over_their_own_way():
    sizes, busy = {"keys": 1}, {"situation": "python loop"}
    rows = [
        row("pull", SUBJECT, [1e-5] * 9, transport="ucx-shm", sizes=sizes, **busy),
        row("pull", "torch RPC", [4e-5] * 9, transport="ucx-shm", sizes=sizes, **busy),
        row("pull", "mpi4py Win.Get", [9e-5] * 9, transport="ucx-tcp", sizes=sizes, **busy),
    ]
    what = "remote pull, server runs pure Python, 1 key, ucx-shm, p99"
    assert find(what, {"busy_server": rows}).baseline == "torch RPC 40.0 us"
    rows.append(row("pull", "mpi4py Win.Get", [2e-5] * 9, transport="ucx-shm", sizes=sizes, **busy))
    assert find(what, {"busy_server": rows}).ratio == "0.50"


def test_a_tail_is_judged_by_its_quantile():
    samples = [1e-6] * 95 + [100e-6] * 5
    target = Target("tail", Pick("remote", "pull", quantile=0.99), Goal(60))
    assert judge(target, {"remote": [row("pull", SUBJECT, samples)]}).reached is False
    assert judge(target, {"remote": [row("pull", SUBJECT, samples[:95])]}).reached is True


@pytest.mark.parametrize(
    ("goal", "value", "ratio", "reached"),
    [
        (Goal(4), 4.0, None, True),
        (Goal(4), 4.1, 0.1, False),
        (Goal(1.1, of_ratio=True), 9.0, 1.1, True),
        (Goal(1.1, of_ratio=True), 9.0, None, None),
        (Goal(1.7, of_ratio=True, at_least=True), 9.0, 1.69, False),
    ],
)
def test_goals(goal, value, ratio, reached):
    assert goal.reached(value, ratio) is reached


def test_the_page_has_a_line_per_target():
    lines = markdown_table(judge_all({})).splitlines()
    assert len(lines) == len(TARGETS) + 2
    assert all(line.count(" | ") == 6 for line in lines)
    assert len(cells(judge_all({})[0])) == 7


def test_runs_are_told_apart_and_joined():
    rows = [local("pull", SUBJECT, us, keys=1, run=run) for run, us in enumerate((1, 2))]
    rows += [local("push", SUBJECT, 3, keys=1, run=1)]
    assert [len(run) for run in runs_of(rows)] == [1, 2]
    assert case_key(rows[0]) == case_key(rows[1]) != case_key(rows[2])
    rows[1]["facts"] |= {"written_per_s": [1, 2], "rows_wanted": 5}
    assert case_key(rows[0]) == case_key(rows[1])
    joined = join_runs(rows)
    assert [len(case["samples"]) for case in joined] == [6, 3]
    assert "run" not in joined[0]["facts"]
    assert len(rows[0]["samples"]) == 3


def test_numbers_for_people():
    assert [plain(x) for x in (0, 0.01234, 0.5, 12.34, 123.4, 12345, float("nan"))] == [
        "0", "0.0123", "0.500", "12.3", "123", "12,345", "-",
    ]  # fmt: skip
    assert with_unit(2.5e-6, "s") == "2.50 us"
    assert with_unit(0.0123, "share") == "1.23 %"
    assert with_unit(12.0, "B") == "12.0 B"
