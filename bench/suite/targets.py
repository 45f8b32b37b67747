"""The table of targets: what intentpm must reach (section 8 of its design), and whether a set of results reaches it.

Each target picks its own row, a baseline and a limit from the results of the suite. Values are medians over the runs of
each run's statistic. Ratios are taken within a run, then their median: a disturbance that lasts hits both alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from intentpm.bench.suite.cases import RowMapping, runs_of
from intentpm.bench.suite.parts import SUBJECT
from intentpm.bench.suite.units import plain, scaled, shown_unit, with_unit

Results = Mapping[str, Sequence[RowMapping]]
"""Part -> rows of all runs. A part that was not run is not in it."""


@dataclass(frozen=True, slots=True)
class Pick:
    """Finds one row of a run, and its statistic."""

    part: str
    name: str
    by: str = SUBJECT
    where: Mapping[str, Any] = field(default_factory=dict)
    """Transport, ranks, sizes and facts that the row must have."""
    quantile: float = 0.5
    label: str | None = None
    """What the table calls it; default: ``by``."""

    def find(self, rows: Sequence[RowMapping]) -> RowMapping | None:
        """Of several that fit, that of the largest table; of these, the first. None: none fits."""
        fitting = [row for row in rows if self._fits(row)]
        return max(fitting, key=lambda row: row["sizes"].get("num_keys", 0), default=None)

    def value(self, row: RowMapping) -> float:
        """The statistic of the row's samples, in its unit."""
        return float(np.quantile(row["samples"], self.quantile))

    def why_missing(self, results: Results) -> str:
        """Which condition no row meets."""
        if self.part not in results:
            return f"part {self.part} was not run"
        rows = list(results[self.part])
        for name, wanted in {"name": self.name, "by": self.by, **self.where}.items():
            rows = [row for row in rows if _property(row, name) == wanted]
            if not rows:
                return f"part {self.part} has no {name} {wanted}"
        return "has no samples"

    def _fits(self, row: RowMapping) -> bool:
        wanted = {"name": self.name, "by": self.by, **self.where}
        return bool(row["samples"]) and all(_property(row, name) == value for name, value in wanted.items())


def _property(row: RowMapping, name: str) -> Any:
    for place in (row, row["facts"], row["sizes"]):
        if name in place:
            return place[name]
    return None


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


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target next to what was measured; texts for people."""

    what: str
    limit: str
    baseline: str
    own: str
    ratio: str
    target: str
    reached: bool | None
    """None: not measured."""
    verdict: str


def judge(target: Target, results: Results) -> Verdict:
    """Looks the target up in the results."""
    measured = _per_run(target.own, results)
    if not measured:
        goal, why = target.goal.text(target.unit), target.own.why_missing(results)
        return Verdict(target.what, "-", "-", "-", "-", goal, None, f"not measured: {why}")
    own, unit = _values(target.own, measured), measured[0][1]["unit"]
    value = float(np.median(own))
    ratio, baseline, limit = None, "-", "-"
    for pick in target.baselines:
        if compared := _ratios(target.own, pick, results):
            ratio, baseline = float(np.median(compared)), _shown(pick, results)
            break
    for pick in target.limits:
        if _per_run(pick, results):
            limit = _shown(pick, results)
            break
    reached = target.goal.reached(scaled(value, unit), ratio)
    verdict = {True: "yes", False: "no", None: "not measured: no baseline"}[reached]
    shown, shown_ratio = with_unit(value, unit) + _spread(own, unit), "-" if ratio is None else f"{ratio:.2f}"
    goal = target.goal.text(shown_unit(unit))
    return Verdict(target.what, limit, baseline, shown, shown_ratio, goal, reached, verdict)


def _per_run(pick: Pick, results: Results) -> list[tuple[int, RowMapping]]:
    """Run and row, of each run that has the row."""
    runs = runs_of(results.get(pick.part, ()))
    found = ((number, pick.find(rows)) for number, rows in enumerate(runs))
    return [(number, row) for number, row in found if row is not None]


def _values(pick: Pick, measured: Sequence[tuple[int, RowMapping]]) -> list[float]:
    return [pick.value(row) for _, row in measured]


def _ratios(own: Pick, baseline: Pick, results: Results) -> list[float]:
    """Of each run that has both."""
    base = {number: baseline.value(row) for number, row in _per_run(baseline, results)}
    pairs = [(own.value(row), base[number]) for number, row in _per_run(own, results) if number in base]
    return [value / divisor for value, divisor in pairs if divisor]


def _shown(pick: Pick, results: Results) -> str:
    measured = _per_run(pick, results)
    name = pick.by if pick.label is None else pick.label
    return f"{name} {with_unit(float(np.median(_values(pick, measured))), measured[0][1]['unit'])}"


def _spread(values: Sequence[float], unit: str) -> str:
    """The range over the runs, when there are several."""
    if len(values) < 2:
        return ""
    return f" ({plain(scaled(min(values), unit))} to {plain(scaled(max(values), unit))})"


# -- the table ---------------------------------------------------------------------------------------------------------

DIM = 64
NUMPY_BY = {"pull": ("np.take",), "push": ("torch index_add_", "np.add.at")}
LIMIT_BY = {"pull": "memcpy", "push": "np.add in place"}


def _count(keys: int) -> str:
    return "1 key" if keys == 1 else f"{keys:,} keys"


def _local(operation: str, keys: int, goal: Goal, situation: str = "same keys") -> Target:
    where = {"keys": keys, "dim": DIM, "distribution": "uniform", "situation": situation}

    def by(name: str) -> Pick:
        return Pick("local", operation, name, where)

    what = f"local {operation}, {_count(keys)}" + (", fresh in each call" if situation == "fresh keys" else "")
    return Target(what, by(SUBJECT), goal, tuple(map(by, NUMPY_BY[operation])), (by(LIMIT_BY[operation]),))


def _threads(operation: str, situation: str) -> Target:
    where = {"keys": 10_000, "situation": situation}

    def of(threads: int, by: str = SUBJECT, label: str | None = None) -> Pick:
        return Pick("threads", operation, by, {**where, "threads": threads}, label=label)

    limit = {"pull": "numpy", "push": "torch"}[operation]
    what = f"local {operation}, 10,000 keys, 2 threads, {situation}"
    return Target(what, of(2), Goal(1.7, of_ratio=True, at_least=True), (of(1, label="1 thread"),), (of(2, limit),))


WIRE = {"ucx-shm": "ucx_perftest round trip", "tcp": "plain sockets round trip"}
"""The same bytes there and back, with nothing done to them."""


def _others(part: str, where: Mapping[str, Any], transport: str, quantile: float = 0.5) -> tuple[Pick, ...]:
    """Peers that fetch the same rows: MPI over the same way, else torch, whose RPC chooses its own."""
    mpi = Pick(part, "pull", "mpi4py Win.Get", {**where, "transport": transport}, quantile)
    rpc = Pick(part, "pull", "torch RPC", where, quantile)
    return (mpi, rpc)


def _remote(transport: str, keys: int, goal: Goal, situation: str = "back to back") -> Target:
    where = {"keys": keys, "situation": situation}
    return Target(
        f"remote pull {situation}, {_count(keys)}, {transport}, p50",
        Pick("remote", "pull", SUBJECT, {**where, "transport": transport}), goal,
        _others("remote", where, transport),
        (Pick("remote", "pull", WIRE[transport], {"keys": keys, "transport": transport}),),
    )  # fmt: skip


def _busy_server(transport: str, goal: Goal) -> Target:
    where = {"keys": 1, "situation": "python loop"}
    return Target(
        f"remote pull, server runs pure Python, 1 key, {transport}, p99",
        Pick("busy_server", "pull", SUBJECT, {**where, "transport": transport}, 0.99), goal,
        _others("busy_server", where, transport, 0.99),
    )  # fmt: skip


def _intent(keys: int, situation: str, goal: Goal) -> Target:
    copy = Pick("intents_cost", "intent", "copy to uint32", {"keys": keys})
    own = Pick("intents_cost", "intent", SUBJECT, {"keys": keys, "situation": situation})
    return Target(f"signal intent for {keys:,} keys, {situation}", own, goal, (copy,), (copy,))


def _due_to_local(keys: int, goal: Goal) -> Target:
    def by(name: str) -> Pick:
        return Pick("due_to_local", "due to local", name, {"transport": "ucx-shm", "keys": keys})

    own = Pick("due_to_local", "due to local", SUBJECT, {"transport": "ucx-shm", "keys": keys, "situation": "polling"})
    what = f"intent due until local, {keys:,} keys, ucx-shm"
    return Target(what, own, goal, (by("remote pull without intent"),), (by(WIRE["ucx-shm"]),))


def _memory(situation: str) -> Target:
    def by(name: str) -> Pick:
        return Pick("memory", "memory per key and rank", name, {"situation": situation})

    return Target(
        f"memory per key and rank but the row, {situation}", by(SUBJECT), Goal(24), (by("dict of int"),), unit="B"
    )


def _processor(situation: str, goal: Goal) -> Target:
    sleeping = Pick("idle_cost", "processor time", "sleeping process", {"situation": situation})
    own = Pick("idle_cost", "processor time", SUBJECT, {"situation": situation}, quantile=1.0)
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


def judge_all(results: Results) -> list[Verdict]:
    """Every target, in the order of the table."""
    return [judge(target, results) for target in TARGETS]
