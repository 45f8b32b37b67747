"""Events and samples as ``_native/journal.pxd``, ``state.pxd`` and ``inquiry.pxd`` lay them out, for Python."""

from enum import IntEnum

import numpy as np


class EventKind(IntEnum):
    """What happened to a key on a rank; ``peer`` and ``detail`` as journal.pxd says."""

    REQUESTED = 1
    WITHDRAWN = 2
    GRANTED = 3
    MOVED_IN = 4
    MOVED_OUT = 5
    DROPPED = 6
    HOLDER_ADDED = 7
    HOLDER_REMOVED = 8
    OFFERED = 9
    INTENT_ON = 16
    INTENT_OFF = 17
    REFRESHED = 18
    DELTA_SENT = 19
    DELTA_TAKEN = 20
    REFRESH_SENT = 21
    FORWARDED = 22
    PARKED = 23
    STATE = 24


class KeyState(IntEnum):
    """Of a key on a rank."""

    ABSENT = 0
    REQUESTED = 1
    REPLICA = 2
    OWNED = 3


class Reason(IntEnum):
    """Why an owner relocated or replicated."""

    NONE = 0
    ONLY_INTENT = 1
    OWNER_INTENDS = 2
    OTHERS_HOLD = 3
    MODE = 4
    LOAD = 5
    ONE_USE = 6
    CHEAPER = 7


EVENT = np.dtype(
    [
        ("time_ns", "i8"),
        ("table", "u4"),
        ("key", "u4"),
        ("detail", "u4"),
        ("peer", "u2"),
        ("kind", "u1"),
        ("reason", "u1"),
        ("costs", "u2", 4),
    ]
)
SAMPLE = np.dtype(
    [
        ("time_ns", "i8"),
        ("relocations_in", "u8"),
        ("relocations_out", "u8"),
        ("replicas_held", "u8"),
        ("sent_bytes", "u8"),
        ("received_bytes", "u8"),
    ]
)
FACTS = np.dtype(
    [("now_ns", "i8")]
    + [
        (name, "u4")
        for name in (
            "rank", "state", "owner", "epoch", "home", "active_intents", "pending_writes", "in_flight", "parked",
            "holders", "intents", "events",
        )
    ]
)  # fmt: skip
RANK = np.dtype("u2")
INTENT = np.dtype([("start", "i8"), ("end", "i8"), ("clock", "i8"), ("worker", "u4"), ("active", "u4")])
