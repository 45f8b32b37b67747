"""``pm.explain()``: what a rank knows of one key, for people."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from intentpm.runtime._native.policy import WAY_NAMES
from intentpm.runtime.events import EVENT, FACTS, INTENT, RANK, EventKind, KeyState, Reason

MOST_ASKED = 8  # ranks, one after the other, while the key moves on

REASONS = {
    Reason.NONE: "",
    Reason.ONLY_INTENT: "no other rank intends it",
    Reason.OWNER_INTENDS: "its owner intends it too",
    Reason.OTHERS_HOLD: "other ranks hold replicas",
    Reason.MODE: "the management mode says so",
    Reason.ONE_USE: "for one clock, others intend it too",
    Reason.CHEAPER: "no other rank intends it, but relocating it would cost more",
    Reason.LOAD: "several ranks intend it, and the new owner serves fewer such keys",
}
DECISIONS: dict[int, str] = {
    EventKind.REQUESTED: "asked for, because an intent was due (owner known: rank {peer}, epoch {detail})",
    EventKind.WITHDRAWN: "not asked for after all: the intent was over",
    EventKind.GRANTED: "replica granted by rank {peer} (epoch {detail})",
    EventKind.MOVED_IN: "relocated here from rank {peer} (epoch {detail})",
    EventKind.MOVED_OUT: "relocated to rank {peer} (epoch {detail}): {reason}",
    EventKind.DROPPED: "replica dropped: no intent here any more (owner: rank {peer})",
    EventKind.HOLDER_ADDED: "replica granted to rank {peer}: {reason}",
    EventKind.HOLDER_REMOVED: "rank {peer} holds no replica any more",
    EventKind.OFFERED: "offered to rank {peer}, the last that holds a replica: no intent here",
}


@dataclass(frozen=True, slots=True)
class IntentReport:
    """One intent of a worker that names the key."""

    worker: int
    start: int
    """First clock of the window."""
    end: int
    """First clock after the window."""
    clock: int
    """The worker's clock now."""
    active: bool
    """Acted on; otherwise it lies further ahead than the action timer looks."""

    def __str__(self) -> str:
        state = "active" if self.active else "not due yet"
        return f"worker {self.worker}: clocks [{self.start}, {self.end}), {state}; its clock is {self.clock}"


@dataclass(frozen=True, slots=True)
class DecisionReport:
    """One decision of management about the key."""

    seconds_ago: float
    kind: str
    """Name of an ``events.EventKind``, in lower case."""
    peer: int
    """The other rank concerned."""
    text: str

    def __str__(self) -> str:
        return f"{_ago(self.seconds_ago)} ago: {self.text}"


@dataclass(frozen=True, slots=True)
class KeyReport:
    """What one rank knows of a key at one moment. ``print`` it.

    Attributes
        rank: whose report this is.
        table, key: the table's name, and the key.
        state: "absent", "requested" (on its way here), "replica" or "owned".
        owner: a rank, as known here; certain only where ``state`` is "owned".
        epoch: how often the key had been relocated when ``owner`` became its owner.
        home: the rank that hears of every relocation of the key.
        holders: ranks with replicas; None where the key is not owned: only the owner knows.
        intents: of this rank's workers, those whose window is not over, active ones first; at most 64 per worker.
        pending_writes: the replica has writes that were not sent to the owner yet.
        in_flight: a record of the key is on its way to the owner and not answered.
        parked: requests that wait here for the key to arrive.
        decisions: the last ones, oldest first; a rank remembers its last 4096 about all keys.
        at_owner: the owner's report, with ``explain(..., ask_owner=True)`` on another rank; None also if the key moves
            too fast.
    """

    rank: int
    table: str
    key: int
    state: str
    owner: int
    epoch: int
    home: int
    holders: tuple[int, ...] | None
    intents: tuple[IntentReport, ...]
    pending_writes: bool
    in_flight: bool
    parked: int
    decisions: tuple[DecisionReport, ...]
    at_owner: "KeyReport | None" = field(default=None)

    def __str__(self) -> str:
        lines = [f"key {self.key} of {self.table!r} on rank {self.rank}: {_STATES[self.state].format(self=self)}"]
        lines.append(f"  owner: rank {self.owner}{self._certainty()}, epoch {self.epoch}; home: rank {self.home}")
        if self.holders is not None:
            lines.append("  replicas: " + (f"ranks {', '.join(map(str, self.holders))}" if self.holders else "none"))
        lines += [f"  intent of {intent}" for intent in self.intents] or ["  intents: none on this rank"]
        lines += [f"  {text}" for text in self._open_things()]
        lines += [f"  {decision}" for decision in self.decisions] or ["  decisions: none remembered"]
        if self.at_owner is not None:
            lines += ["its owner says:", str(self.at_owner)]
        elif self.state != "owned":
            lines.append(
                f"  for replicas, and for why it moved: explain(..., ask_owner=True), or ask on rank {self.owner}"
            )
        return "\n".join(lines)

    def _certainty(self) -> str:
        return "" if self.state == "owned" else " as far as known here"

    def _open_things(self) -> list[str]:
        texts = []
        if self.pending_writes:
            texts.append("writes here that the owner has not been told of")
        if self.in_flight:
            texts.append("a record is on its way to the owner")
        if self.parked:
            texts.append(f"{self.parked} requests wait for it to arrive")
        return texts


_STATES = {
    "absent": "not here",
    "requested": "on its way here",
    "replica": "a replica",
    "owned": "owned here",
}


def read_report(facts: bytes, table: str, key: int) -> KeyReport:
    """The report in ``facts``, laid out as ``_native/inquiry.pxd`` says."""
    known = np.frombuffer(facts, FACTS, 1)[0]
    at = FACTS.itemsize
    ranks = np.frombuffer(facts, RANK, int(known["holders"]), at)
    at += ranks.nbytes
    intents = np.frombuffer(facts, INTENT, int(known["intents"]), at)
    at += intents.nbytes
    events = np.frombuffer(facts, EVENT, int(known["events"]), at)
    state = KeyState(known["state"])
    return KeyReport(
        rank=int(known["rank"]),
        table=table,
        key=key,
        state=state.name.lower(),
        owner=int(known["owner"]),
        epoch=int(known["epoch"]),
        home=int(known["home"]),
        holders=tuple(sorted(ranks.tolist())) if state == KeyState.OWNED else None,
        intents=tuple(_intent(row) for row in intents),
        pending_writes=bool(known["pending_writes"]),
        in_flight=bool(known["in_flight"]),
        parked=int(known["parked"]),
        decisions=tuple(_decision(row, int(known["now_ns"])) for row in events),
    )


def ask_owner(report: KeyReport, ask: Callable[[int], KeyReport]) -> KeyReport | None:
    """The owner's report, found by asking the owner that ``report`` knows, then the one that that knows, and so on.

    ask: rank -> its report. None: the key moved faster than it could be followed.
    """
    for _ in range(MOST_ASKED):
        report = ask(report.owner)
        if report.state == "owned":
            return report
    return None


def _intent(row: Any) -> IntentReport:
    return IntentReport(int(row["worker"]), int(row["start"]), int(row["end"]), int(row["clock"]), bool(row["active"]))


def _decision(row: Any, now_ns: int) -> DecisionReport:
    text = DECISIONS[row["kind"]].format(peer=row["peer"], detail=row["detail"], reason=REASONS[row["reason"]])
    text += _costs(row["costs"])
    kind = EventKind(row["kind"]).name.lower()
    return DecisionReport(max(0, now_ns - int(row["time_ns"])) * 1e-9, kind, int(row["peer"]), text)


def _costs(costs: Any) -> str:
    ways = [f"{way} {cost}" for way, cost in zip(WAY_NAMES, costs.tolist(), strict=True) if cost]
    return f" (bytes until its window is over: {', '.join(ways)})" if ways else ""


def _ago(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
