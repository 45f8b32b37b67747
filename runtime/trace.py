"""``pm.trace()`` and ``pm.write_trace()``: recording chosen keys, and bringing together what the ranks recorded."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from intentpm.foundation.errors import Error, KeyRangeError
from intentpm.foundation.whole_file import write_or_keep
from intentpm.runtime.arguments import as_keys, whole_number
from intentpm.runtime.array_types import Keys
from intentpm.runtime.clocks import clock_offsets, time_exchanges
from intentpm.runtime.events import EVENT, SAMPLE
from intentpm.runtime.trace_file import RankTrace, trace_document

MOST_EVENTS = 1 << 24


def begin_trace(inspector: Any, table: Any, keys: Keys, events: int) -> None:
    """Starts or extends this rank's trace.

    Raises ShapeError, DtypeError, KeyRangeError, Error; nothing has changed then.
    """
    wanted = np.unique(as_keys(keys))
    if wanted.size and (wanted[0] < 0 or wanted[-1] >= table.num_keys):
        bad = wanted[0] if wanted[0] < 0 else wanted[-1]
        raise KeyRangeError(f"key {bad} is not in table {table.name!r}, whose keys are 0 to {table.num_keys - 1}")
    events = whole_number(events, "events")
    if not 0 < events <= MOST_EVENTS:
        raise Error(f"events={events}: a trace has room for 1 to {MOST_EVENTS} events per rank")
    inspector.begin_trace(table, wanted, 1 << (events - 1).bit_length())


def gather_traces(
    now_ns: Callable[[], int],
    recorded: Callable[[], tuple[bytes, bytes, int]],
    allgather: Callable[[bytes], list[bytes]],
) -> list[RankTrace]:
    """Collective: what all ranks ``recorded``, with the offsets of their clocks."""
    entered, left = time_exchanges(now_ns, lambda: allgather(b""))
    events, samples, lost = recorded()
    contents = io.BytesIO()
    np.savez_compressed(
        contents,
        events=np.frombuffer(events, EVENT),
        samples=np.frombuffer(samples, SAMPLE),
        lost=np.int64(lost),
        entered=np.array(entered),
        left=np.array(left),
    )
    loaded = [np.load(io.BytesIO(payload)) for payload in allgather(contents.getvalue())]
    offsets = clock_offsets([rank["entered"].tolist() for rank in loaded], [rank["left"].tolist() for rank in loaded])
    return [
        RankTrace(rank["events"], rank["samples"], int(rank["lost"]), offset)
        for rank, offset in zip(loaded, offsets, strict=True)
    ]


def write_document(path: Path, traces: list[RankTrace], tables: dict[int, str]) -> None:
    """Writes the traces as one file; its folder is made if need be.

    Raises Error when nothing was traced; NotWrittenError, which says where the trace was kept instead.
    """
    if not any(trace.events.size for trace in traces):
        raise Error("nothing was traced: call pm.trace(table, keys) on the ranks first, then let the job work")
    document = trace_document(traces, tables)
    write_or_keep(path, json.dumps(document, separators=(",", ":")).encode())
