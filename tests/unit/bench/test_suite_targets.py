"""The table of targets picks the cases it means, and says what is missing."""

import pytest

from intentpm.bench.benchmarks import SUBJECT
from intentpm.bench.suite.targets import COLUMNS, TARGETS, Goal, Pick, Target, judge, plain, with_unit


def case(operation, by, samples, *, unit="s", **info):
    return {"extra_info": {"operation": operation, "by": by, "unit": unit, **info}, "stats": {"data": samples}}


def local(operation, by, us, *, keys, num_keys=1000, situation="same keys", distribution="uniform"):
    return case(
        operation, by, [0.5e-6 * us, 1e-6 * us, 9e-6 * us], situation=situation, distribution=distribution, keys=keys,
        dim=64, num_keys=num_keys,
    )  # fmt: skip


def find(what, *runs):
    (target,) = [target for target in TARGETS if target.what == what]
    verdict = judge(target, runs)
    return dict(zip(COLUMNS, verdict.cells, strict=True)) | {"bool": verdict.reached}


def test_no_two_targets_have_one_name():
    assert len({target.what for target in TARGETS}) == len(TARGETS)
    assert all(target.own.by == SUBJECT for target in TARGETS)


def test_an_absolute_target_is_judged_by_the_median():
    run = [
        local("pull", SUBJECT, 0.3, keys=1),
        local("pull", "np.take", 0.6, keys=1),
        local("push", SUBJECT, 9, keys=1),
    ]
    found = find("local pull, 1 key", run)
    assert (found["intentpm"], found["baseline"], found["ratio"]) == ("0.300 us", "np.take 0.600 us", "0.50")
    assert (found["target"], found["reached?"], found["bool"]) == ("<= 0.4 us", "yes", True)
    run[0] = local("pull", SUBJECT, 0.5, keys=1)
    assert find("local pull, 1 key", run)["reached?"] == "no"


def test_the_largest_table_and_the_right_keys_are_picked():
    run = [
        local("pull", SUBJECT, us, keys=keys, num_keys=num_keys, situation=situation, distribution=distribution)
        for us, keys, num_keys, situation, distribution in [
            (1, 10_000, 10**5, "same keys", "uniform"),
            (2, 10_000, 10**7, "same keys", "uniform"),
            (3, 10_000, 10**8, "same keys", "zipf"),
            (4, 10_000, 10**6, "fresh keys", "uniform"),
            (5, 1_000, 10**8, "same keys", "uniform"),
        ]
    ]
    run += [local("pull", "np.take", 10, keys=10_000, num_keys=10**7)]
    found = find("local pull, 10,000 keys", run)
    assert (found["intentpm"], found["ratio"], found["bool"]) == ("2.00 us", "0.20", True)
    fresh = find("local pull, 10,000 keys, fresh in each call", run)
    assert (fresh["intentpm"], fresh["bool"], fresh["reached?"]) == ("4.00 us", None, "not measured: no baseline")


def test_ratios_are_taken_within_each_run():
    runs = [
        [local("pull", SUBJECT, own, keys=10_000), local("pull", "np.take", base, keys=10_000)]
        for own, base in [(1, 10), (30, 100), (5, 10), (2, 10), (900, 1000)]
    ]
    found = find("local pull, 10,000 keys", *runs)
    assert found["intentpm"] == "5.00 us (1.00 to 900)"
    assert found["ratio"] == "0.30"  # of 0.1, 0.3, 0.5, 0.2, 0.9; the medians' would be 0.5


def test_a_run_without_the_baseline_does_not_count_in_the_ratio():
    runs = [[local("pull", SUBJECT, 8, keys=10_000)]]
    runs += [[local("pull", SUBJECT, 2, keys=10_000), local("pull", "np.take", 4, keys=10_000)]]
    assert find("local pull, 10,000 keys", *runs)["ratio"] == "0.50"


def test_the_first_baseline_that_was_measured_counts():
    run = [local("push", SUBJECT, 1, keys=10_000), local("push", "np.add.at", 4, keys=10_000)]
    assert find("local push, 10,000 keys", run)["baseline"] == "np.add.at 4.00 us"
    run.append(local("push", "torch index_add_", 2, keys=10_000))
    assert find("local push, 10,000 keys", run)["baseline"] == "torch index_add_ 2.00 us"


def test_two_threads_are_compared_with_one():
    info = {"keys": 10_000, "dim": 64, "num_keys": 10, "situation": "same keys"}
    run = [
        case("push", SUBJECT, [1 / rate], unit="s/row", threads=threads, **info)
        for threads, rate in [(1, 40e6), (2, 72e6), (4, 80e6)]
    ]
    found = find("local push, 10,000 keys, 2 threads, same keys", run)
    assert (found["intentpm"], found["baseline"]) == ("72.0 M rows/s", "1 thread 40.0 M rows/s")
    assert (found["ratio"], found["target"], found["bool"]) == ("1.80", ">= 1.7 x baseline", True)


def test_what_is_missing_is_said_and_not_reached():
    assert all(judge(target, []).reached is None for target in TARGETS)
    run = [case("pull", SUBJECT, [1e-5], transport="tcp", keys=1, situation="back to back")]
    assert find("remote pull back to back, 1 key, tcp, p50", run)["bool"] is True
    absent = find("remote pull back to back, 1 key, ucx-shm, p50", run)
    assert absent["reached?"] == "not measured: no case has transport ucx-shm"
    spaced = find("remote pull spaced, 1 key, tcp, p50", run)
    assert spaced["reached?"] == "not measured: no case has situation spaced"


def test_peers_are_compared_over_their_own_way():
    where = {"keys": 1, "situation": "python loop"}
    run = [
        case("pull", SUBJECT, [1e-5] * 9, transport="ucx-shm", **where),
        case("pull", "torch RPC", [4e-5] * 9, transport="tcp", **where),
        case("pull", "mpi4py Win.Get", [9e-5] * 9, transport="ucx-tcp", **where),
    ]
    what = "remote pull, server runs pure Python, 1 key, ucx-shm, p99"
    assert find(what, run)["baseline"] == "torch RPC 40.0 us"
    run.append(case("pull", "mpi4py Win.Get", [2e-5] * 9, transport="ucx-shm", **where))
    assert find(what, run)["ratio"] == "0.50"


def test_a_tail_is_judged_by_its_quantile():
    samples = [1e-6] * 95 + [100e-6] * 5
    target = Target("tail", Pick("pull", quantile=0.99), Goal(60))
    assert judge(target, [[case("pull", SUBJECT, samples)]]).reached is False
    assert judge(target, [[case("pull", SUBJECT, samples[:95])]]).reached is True


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


def test_numbers_for_people():
    assert [plain(x) for x in (0, 0.01234, 0.5, 12.34, 123.4, 12345, float("nan"))] == [
        "0", "0.0123", "0.500", "12.3", "123", "12,345", "-",
    ]  # fmt: skip
    assert with_unit(2.5e-6, "s") == "2.50 us"
    assert with_unit(0.0123, "share") == "1.23 %"
    assert with_unit(12.0, "B") == "12.0 B"
