"""The table of targets: what intentpm must reach, and whether the cases of one or several runs reach it.

Each target picks its own case, a baseline and a limit. Values are medians over the runs of each run's statistic. Ratios
are taken within a run, then their median: a disturbance that lasts hits both alike.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from intentpm.bench.benchmarks import SUBJECT, Benchmark

Runs = Sequence[Sequence[Benchmark]]
"""The cases of each run."""
SHOWN = {"s": ("us", 1e6), "share": ("%", 100.0), "rows/s": ("M rows/s", 1e-6)}
"""Unit of a value -> the unit shown, and how many of it make one."""


@dataclass(frozen=True, slots=True)
class Pick:
    """Finds one case of a run, and its statistic."""

    operation: str
    by: str = SUBJECT
    where: Mapping[str, Any] = field(default_factory=dict)
    """What ``extra_info`` must hold besides."""
    quantile: float = 0.5
    label: str | None = None
    """What the table calls it; default: ``by``."""

    def values(self, runs: Runs) -> dict[int, float]:
        """Run -> value, of the runs that have the case. Of several that fit, that of the largest table; of these, the
        first. A throughput's is in rows per second."""
        found = {number: case for number, run in enumerate(runs) if (case := self._find(run))}
        return {number: self._value(case) for number, case in found.items()}

    def unit(self, runs: Runs) -> str:
        """Of the values. There must be some."""
        unit: str = next(case for run in runs if (case := self._find(run)))["extra_info"]["unit"]
        return "rows/s" if unit == "s/row" else unit

    def shown(self, runs: Runs) -> str | None:
        """The median for people; None: no run has the case."""
        values = list(self.values(runs).values())
        name = self.by if self.label is None else self.label
        return f"{name} {with_unit(float(np.median(values)), self.unit(runs))}" if values else None

    def why_missing(self, runs: Runs) -> str:
        """Which condition no case meets."""
        cases = [case for run in runs for case in run]
        for name, wanted in self._wanted().items():
            cases = [case for case in cases if case["extra_info"].get(name) == wanted]
            if not cases:
                return f"no case has {name} {wanted}"
        return "no samples"

    def _wanted(self) -> dict[str, Any]:
        return {"operation": self.operation, "by": self.by, **self.where}

    def _find(self, run: Sequence[Benchmark]) -> Benchmark | None:
        wanted = self._wanted().items()
        fitting = [case for case in run if wanted <= case["extra_info"].items()]
        return max(fitting, key=lambda case: case["extra_info"].get("num_keys", 0), default=None)

    def _value(self, case: Benchmark) -> float:
        value = float(np.quantile(case["stats"]["data"], self.quantile))
        return 1 / value if case["extra_info"]["unit"] == "s/row" else value


@dataclass(frozen=True, slots=True)
class Goal:
    """What must be reached: a bound of the value (in the unit shown) or of its ratio to the baseline."""

    bound: float
    of_ratio: bool = False
    at_least: bool = False

    def reached(self, value: float, ratio: float | None) -> bool | None:
        """None: it cannot be said without a baseline."""
        measured = ratio if self.of_ratio else value
        if measured is None:
            return None
        return measured >= self.bound if self.at_least else measured <= self.bound

    def text(self, unit: str) -> str:
        """Such as "<= 0.4 us"."""
        sign = ">=" if self.at_least else "<="
        return f"{sign} {self.bound:g} x baseline" if self.of_ratio else f"{sign} {self.bound:g} {unit}"


@dataclass(frozen=True, slots=True)
class Target:
    """One row of the table."""

    what: str
    own: Pick
    goal: Goal
    baselines: tuple[Pick, ...] = ()
    """The first that was measured counts."""
    limits: tuple[Pick, ...] = ()
    """What the machine could do at best; the first that was measured is shown."""
    unit: str = "us"
    """The unit shown, as long as nothing was measured."""


COLUMNS = ("what", "limit", "baseline", "intentpm", "ratio", "target", "reached?")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target next to what was measured."""

    cells: tuple[str, ...]
    """Texts for people, one per column."""
    reached: bool | None
    """None: not measured."""


def judge(target: Target, runs: Runs) -> Verdict:
    """Looks the target up in the runs."""
    own = target.own.values(runs)
    if not own:
        why = f"not measured: {target.own.why_missing(runs)}"
        return Verdict((target.what, "-", "-", "-", "-", target.goal.text(target.unit), why), None)
    unit, values = target.own.unit(runs), list(own.values())
    ratio, baseline = None, "-"
    for pick in target.baselines:
        base = pick.values(runs)
        if ratios := [value / base[run] for run, value in own.items() if base.get(run)]:
            ratio, baseline = float(np.median(ratios)), pick.shown(runs) or "-"
            break
    limit = next((shown for pick in target.limits if (shown := pick.shown(runs))), "-")
    value = float(np.median(values))
    reached = target.goal.reached(_scaled(value, unit), ratio)
    verdict = {True: "yes", False: "no", None: "not measured: no baseline"}[reached]
    shown, shown_ratio = with_unit(value, unit) + _spread(values, unit), "-" if ratio is None else f"{ratio:.2f}"
    goal = target.goal.text(SHOWN.get(unit, (unit,))[0])
    return Verdict((target.what, limit, baseline, shown, shown_ratio, goal, verdict), reached)


def _spread(values: Sequence[float], unit: str) -> str:
    """The range over the runs, when there are several."""
    if len(values) < 2:
        return ""
    return f" ({plain(_scaled(min(values), unit))} to {plain(_scaled(max(values), unit))})"


def _scaled(value: float, unit: str) -> float:
    """``value`` in the unit shown."""
    return value * SHOWN.get(unit, (unit, 1.0))[1]


def with_unit(value: float, unit: str) -> str:
    """Such as "0.08 us"."""
    return f"{plain(_scaled(value, unit))} {SHOWN.get(unit, (unit,))[0]}"


def plain(number: float) -> str:
    """Three significant digits, without exponent."""
    if not math.isfinite(number):
        return "-"
    if number == 0 or abs(number) >= 100:
        return f"{number:,.0f}"
    decimals = max(0, min(4, 2 - math.floor(math.log10(abs(number)))))
    return f"{number:.{decimals}f}"


# -- the table ---------------------------------------------------------------------------------------------------------

DIM = 64
NUMPY_BY = {"pull": ("np.take",), "push": ("torch index_add_", "np.add.at")}
LIMIT_BY = {"pull": "memcpy", "push": "np.add in place"}


def _count(keys: int) -> str:
    return "1 key" if keys == 1 else f"{keys:,} keys"


def _local(operation: str, keys: int, goal: Goal, situation: str = "same keys") -> Target:
    where = {"keys": keys, "dim": DIM, "distribution": "uniform", "situation": situation}

    def by(name: str) -> Pick:
        return Pick(operation, name, where)

    what = f"local {operation}, {_count(keys)}" + (", fresh in each call" if situation == "fresh keys" else "")
    return Target(what, by(SUBJECT), goal, tuple(map(by, NUMPY_BY[operation])), (by(LIMIT_BY[operation]),))


def _threads(operation: str, situation: str) -> Target:
    where = {"keys": 10_000, "situation": situation}

    def of(threads: int, by: str = SUBJECT, label: str | None = None) -> Pick:
        return Pick(operation, by, {**where, "threads": threads}, label=label)

    limit = {"pull": "np.take", "push": "torch index_add_"}[operation]
    what = f"local {operation}, 10,000 keys, 2 threads, {situation}"
    return Target(what, of(2), Goal(1.7, of_ratio=True, at_least=True), (of(1, label="1 thread"),), (of(2, limit),))


WIRE = {"ucx-shm": "ucx_perftest round trip", "tcp": "plain sockets round trip"}
"""The same bytes there and back, with nothing done to them."""


def _others(where: Mapping[str, Any], transport: str, quantile: float = 0.5) -> tuple[Pick, ...]:
    """Peers that fetch the same rows: MPI over the same way, else torch, whose RPC chooses its own."""
    mpi = Pick("pull", "mpi4py Win.Get", {**where, "transport": transport}, quantile)
    rpc = Pick("pull", "torch RPC", where, quantile)
    return (mpi, rpc)


def _remote(transport: str, keys: int, goal: Goal, situation: str = "back to back") -> Target:
    where = {"keys": keys, "situation": situation}
    return Target(
        f"remote pull {situation}, {_count(keys)}, {transport}, p50",
        Pick("pull", SUBJECT, {**where, "transport": transport}), goal, _others(where, transport),
        (Pick("pull", WIRE[transport], {"keys": keys, "transport": transport}),),
    )  # fmt: skip


def _busy_server(transport: str, goal: Goal) -> Target:
    where = {"keys": 1, "situation": "python loop"}
    return Target(
        f"remote pull, server runs pure Python, 1 key, {transport}, p99",
        Pick("pull", SUBJECT, {**where, "transport": transport}, 0.99), goal, _others(where, transport, 0.99),
    )  # fmt: skip


def _intent(keys: int, situation: str, goal: Goal) -> Target:
    copy = Pick("intent", "copy to uint32", {"keys": keys})
    own = Pick("intent", SUBJECT, {"keys": keys, "situation": situation})
    return Target(f"signal intent for {keys:,} keys, {situation}", own, goal, (copy,), (copy,))


def _due_to_local(keys: int, goal: Goal) -> Target:
    where = {"transport": "ucx-shm", "keys": keys}
    own = Pick("due to local", SUBJECT, {**where, "situation": "polling"})
    wire = Pick("pull", WIRE["ucx-shm"], {**where, "keys": 100 if keys == 100 else 10_000})
    pull = Pick("due to local", "remote pull without intent", where)
    return Target(f"intent due until local, {keys:,} keys, ucx-shm", own, goal, (pull,), (wire,))


def _memory(situation: str) -> Target:
    def by(name: str) -> Pick:
        return Pick("memory per key and rank", name, {"situation": situation})

    return Target(
        f"memory per key and rank but the row, {situation}", by(SUBJECT), Goal(24), (by("dict of int"),), unit="B"
    )


def _processor(situation: str, goal: Goal) -> Target:
    sleeping = Pick("processor time", "sleeping process", {"situation": situation})
    own = Pick("processor time", SUBJECT, {"situation": situation}, quantile=1.0)
    return Target(f"processor time, {situation}", own, goal, (), (sleeping,), unit="%")


WITHIN_10_PERCENT = Goal(1.1, of_ratio=True)

TARGETS: tuple[Target, ...] = (
    _local("pull", 1, Goal(0.4)),
    _local("pull", 100, Goal(1.5)),
    _local("pull", 10_000, WITHIN_10_PERCENT),
    _local("pull", 10_000, WITHIN_10_PERCENT, "fresh keys"),
    _local("push", 1, Goal(0.5)),
    _local("push", 100, Goal(2.5)),
    _local("push", 10_000, WITHIN_10_PERCENT),
    _local("push", 10_000, WITHIN_10_PERCENT, "fresh keys"),
    _threads("pull", "same keys"),
    _threads("pull", "different keys"),
    _threads("push", "same keys"),
    _threads("push", "different keys"),
    _remote("ucx-shm", 1, Goal(4)),
    _remote("ucx-shm", 100, Goal(15)),
    _remote("ucx-shm", 10_000, Goal(500)),
    _remote("tcp", 1, Goal(20)),
    _remote("tcp", 100, Goal(40)),
    _remote("tcp", 10_000, Goal(1200)),
    _remote("ucx-shm", 1, Goal(60), "spaced"),
    _remote("tcp", 1, Goal(80), "spaced"),
    _busy_server("ucx-shm", Goal(60)),
    _intent(100, "in training", Goal(3)),
    _intent(10_000, "in training", Goal(60)),
    _intent(100, "far ahead", Goal(3)),
    _intent(10_000, "far ahead", Goal(60)),
    _due_to_local(100, Goal(100)),
    _due_to_local(9_500, Goal(1200)),
    _memory("new table"),
    _memory("after replicas of all keys"),
    _processor("idle", Goal(0.1)),
    _processor("local training without intents", Goal(1)),
    _processor("local training with intents", Goal(1)),
)
"""In the order of the table. Absolute bounds: us, bytes or percent, as the table shows them."""
