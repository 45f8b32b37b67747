"""The picture of a trace."""

import json

import click
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from intentpm.bench.plots import draw
from intentpm.bench.trace_plot import INTENDED, MOST_KEYS, STATES, draw_trace, is_trace
from intentpm.runtime.clocks import ClockOffset
from intentpm.runtime.events import EVENT, SAMPLE, EventKind, KeyState
from intentpm.runtime.trace_file import RankTrace, trace_document


def recorded(rows):
    return np.array([(time_ns, 0, key, detail, 0, kind, 0, (0, 0, 0, 0)) for time_ns, key, kind, detail in rows], EVENT)


def document(keys=1, lost=0, uncertainty_ns=0):
    """Of two ranks: every key moves from rank 1 to rank 0 after 4 of 10 ms; key 0 comes back as a replica."""
    first, second = [], []
    for key in range(keys):
        first += [(0, key, EventKind.STATE, KeyState.ABSENT), (3_000_000, key, EventKind.INTENT_ON, 0)]
        first += [(3_000_000, key, EventKind.REQUESTED, 0), (4_000_000, key, EventKind.MOVED_IN, 1)]
        second += [(0, key, EventKind.STATE, KeyState.OWNED), (4_000_000, key, EventKind.MOVED_OUT, 1)]
    second += [(6_000_000, 0, EventKind.REQUESTED, 1), (7_000_000, 0, EventKind.GRANTED, 1)]
    second += [(8_000_000, 0, EventKind.REFRESHED, 1), (9_000_000, 0, EventKind.PARKED, 0)]
    samples = np.array([(0, 5, 0, 0, 1000, 0), (10_000_000, 8, 0, 2, 3_001_000, 0)], SAMPLE)
    clock = ClockOffset(0, uncertainty_ns)
    traces = [RankTrace(recorded(first), samples, lost), RankTrace(recorded(second), samples[:1], 0, clock)]
    return trace_document(traces, {0: "items"})


def drawn(trace):
    figure = Figure(layout="constrained")
    draw_trace(trace, figure)
    figure.canvas.draw()
    return figure.axes


def bars(axes, colour):
    """(x from, x to, y middle) of each bar of a colour."""
    found = []
    for collection in axes.collections:
        if to_hex(collection.get_facecolor()[0]) == colour:
            for path in collection.get_paths():
                box = path.get_extents()
                found.append((round(box.x0, 6), round(box.x1, 6), round((box.y0 + box.y1) / 2)))
    return sorted(found)


def test_bars_show_the_states_in_rows_of_key_and_rank():
    life = drawn(document())[0]
    assert bars(life, STATES["owned"]) == [(0, 4, 1), (4, 10, 0)], "ms, on rank 1 and then on rank 0"
    assert bars(life, STATES["requested"]) == [(3, 4, 0), (6, 7, 1)]
    assert bars(life, STATES["replica"]) == [(7, 10, 1)]
    assert bars(life, INTENDED) == [(3, 10, 0)]
    assert [label.get_text() for label in life.get_yticklabels()] == ["0", "1"]
    assert "items[0]" in [text.get_text() for text in life.texts]


def test_totals_start_at_zero_but_replicas_at_what_is_held():
    _, relocations, replicas, sent = drawn(document())
    assert list(relocations.lines[0].get_ydata()) == [0, 3]
    assert list(replicas.lines[0].get_ydata()) == [0, 2]
    assert list(sent.lines[0].get_ydata()) == [0, 3], "MB"
    assert sent.get_xlabel() == "time in ms"


def test_the_title_says_what_is_missing():
    axes = drawn(document(keys=MOST_KEYS + 3, lost=1234, uncertainty_ns=50_000))[0]
    title = axes.get_title("left")
    assert title.startswith(f"{MOST_KEYS + 3} traced keys on 2 ranks (3 that moved least are not shown)")
    assert "1,234 oldest events were overwritten" in title
    assert "clocks of the ranks agree to 0.05 ms" in title
    shown = [text.get_text() for text in axes.texts if text.get_text().startswith("items[")]
    assert len(shown) == MOST_KEYS
    assert shown[0] == "items[0]", "the key that moved most"


def test_draw_knows_a_trace_from_results(tmp_path):
    assert is_trace(document())
    assert not is_trace({"traceEvents": [], "otherData": {}})
    assert not is_trace([])
    (tmp_path / "trace.json").write_text(json.dumps(document()))
    draw(tmp_path / "trace.json", tmp_path / "pictures" / "trace.png")
    assert (tmp_path / "pictures" / "trace.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_trace_with_parts_missing_is_an_error(tmp_path):
    broken = document()
    del broken["otherData"]["keys"]
    (tmp_path / "trace.json").write_text(json.dumps(broken))
    with pytest.raises(click.ClickException, match="incomplete"):
        draw(tmp_path / "trace.json", tmp_path / "trace.png")
