"""The plot of a trace (``pm.write_trace``): the life of its keys on every rank, and the ranks' totals over time."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from intentpm.runtime.trace_file import KEY_PIDS, PRODUCER

WIDTH_INCHES, ROW_INCHES, TOTALS_INCHES, MARGIN_INCHES = 10.0, 0.17, 1.15, 1.5
MOST_KEYS, MOST_ROWS, MOST_LINES, MOST_MARKS = 16, 400, 8, 4000
STATES = {"owned": "#1f5fbf", "replica": "#7fb2e8", "requested": "#e8b04a"}
INTENDED, MARK, QUIET = "#2b8a57", "#b3394b", "#5b6472"
MARKS = {"refreshed": ".", "delta_sent": "|", "parked": "x", "forwarded": "x"}
BAR, INTENT_BAR = (-0.22, 0.56), (-0.42, 0.14)  # of a row: lower edge and height
SCALES = ((1e6, "s"), (1e3, "ms"), (1.0, "us"))


@dataclass(frozen=True)
class Scale:
    """The unit of the time axis."""

    us: float
    name: str


def is_trace(document: Any) -> bool:
    """Whether ``document`` (parsed JSON) is what ``pm.write_trace`` wrote."""
    return isinstance(document, Mapping) and document.get("otherData", {}).get("producer") == PRODUCER


def draw_trace(document: Mapping[str, Any], figure: Figure) -> None:
    """Draws the trace; sets the figure's size. KeyError where a part is missing."""
    facts, events = document["otherData"], document["traceEvents"]
    most = max(1, min(MOST_KEYS, MOST_ROWS // (facts["ranks"] + 1)))
    keys, left_out = _chosen_keys([tuple(key) for key in facts["keys"]], events, most)
    rows = max(1, len(keys) * (facts["ranks"] + 1))
    scale = _scale(facts["duration_us"])
    figure.set_size_inches(WIDTH_INCHES, MARGIN_INCHES + rows * ROW_INCHES + 3 * TOTALS_INCHES)
    life, *totals = figure.subplots(4, sharex=True, height_ratios=[rows * ROW_INCHES + 0.3] + [TOTALS_INCHES] * 3)
    _draw_life(life, events, keys, facts["ranks"], scale)
    life.set_title(_title(facts, left_out, scale), loc="left", fontsize=10, pad=24)
    _draw_totals(totals, events, facts["ranks"], scale)
    totals[-1].set_xlabel(f"time in {scale.name}")
    totals[-1].set_xlim(0, facts["duration_us"] / scale.us)
    figure.align_ylabels(totals)


def _title(facts: Mapping[str, Any], left_out: int, scale: Scale) -> str:
    keys, ranks = len(facts["keys"]), facts["ranks"]
    text = f"{keys} traced key{'s'[: keys != 1]} on {ranks} rank{'s'[: ranks != 1]}"
    if left_out:
        text += f" ({left_out} that moved least are not shown)"
    if lost := sum(facts["lost_events"]):
        text += f"; the {lost:,} oldest events were overwritten"
    if uncertain := max(facts["clock_uncertainty_us"]):
        text += f"; clocks of the ranks agree to {uncertain / scale.us:.3g} {scale.name}"
    return text


def _scale(duration_us: float) -> Scale:
    return next(Scale(us, name) for us, name in SCALES if duration_us >= 2 * us or us == 1)


def _chosen_keys(
    keys: list[tuple[str, int]], events: Iterable[Mapping[str, Any]], most: int
) -> tuple[list[tuple[str, int]], int]:
    """The keys to draw, in their order: those with the most changes of state, if there are many."""
    changes = Counter(_key(event) for event in events if event.get("cat") == "state")
    chosen = set(sorted(keys, key=lambda key: -changes[key])[:most])
    return [key for key in keys if key in chosen], len(keys) - len(chosen)


def _key(event: Mapping[str, Any]) -> tuple[str, int]:
    return event["args"]["table"], event["args"]["key"]


# -- the life of keys --------------------------------------------------------------------------------------------------


def _draw_life(
    axes: Axes, events: Sequence[Mapping[str, Any]], keys: Sequence[tuple[str, int]], ranks: int, scale: Scale
) -> None:
    """A row per key and rank: a bar for what the key is there, a thin one below it for when it is intended."""
    place = {key: number * (ranks + 1) for number, key in enumerate(keys)}
    bars: dict[tuple[int, str], list[tuple[float, float]]] = defaultdict(list)
    marks: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for event in events:
        if event.get("cat") not in ("state", "intent", "event") or _key(event) not in place:
            continue
        row = place[_key(event)] + event["args"]["rank"]
        if event["ph"] == "X":
            bars[row, event["name"]].append((event["ts"] / scale.us, event["dur"] / scale.us))
        elif event["name"] in MARKS:
            marks[event["name"]].append((event["ts"] / scale.us, row))
    for (row, name), spans in bars.items():
        low, height = INTENT_BAR if name == "intended" else BAR
        colour = INTENDED if name == "intended" else STATES[name]
        axes.broken_barh(spans, (row - low - height, height), facecolors=colour, linewidth=0)
    shown = _draw_marks(axes, marks)
    _label_rows(axes, keys, ranks)
    _legend(axes, shown)


def _draw_marks(axes: Axes, marks: Mapping[str, Sequence[tuple[float, int]]]) -> list[str]:
    """Returns which kinds were drawn: single refreshes and deltas say nothing where they would cover everything."""
    shown = []
    for name, points in marks.items():
        if len(points) > MOST_MARKS:
            continue
        shown.append(name)
        colour = MARK if MARKS[name] == "x" else "#ffffff"
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, MARKS[name], color=colour, markersize=4 if MARKS[name] != "." else 2, markeredgewidth=0.7)
    return shown


def _label_rows(axes: Axes, keys: Sequence[tuple[str, int]], ranks: int) -> None:
    rows = [(number * (ranks + 1) + rank, rank) for number in range(len(keys)) for rank in range(ranks)]
    axes.set_yticks([row for row, _ in rows], [str(rank) for _, rank in rows], fontsize=7, color=QUIET)
    axes.tick_params("y", length=0)
    axes.set_ylim(len(keys) * (ranks + 1) - 0.4, -1)
    axes.grid(False, axis="y")
    axes.annotate("rank", (0, -0.7), (-7, 0), axes.get_yaxis_transform(), textcoords="offset points", ha="right",
                  va="center", fontsize=7, color=QUIET, annotation_clip=False)  # fmt: skip
    for number, (table, key) in enumerate(keys):
        middle = number * (ranks + 1) + (ranks - 1) / 2
        axes.annotate(
            f"{table}[{key}]", (0, middle), (-22, 0), axes.get_yaxis_transform(), textcoords="offset points",
            ha="right", va="center", fontsize=8, annotation_clip=False,
        )  # fmt: skip
        for rank in range(ranks):
            axes.axhline(number * (ranks + 1) + rank, color="#eceef2", linewidth=5, zorder=0)


def _legend(axes: Axes, shown: Sequence[str]) -> None:
    handles: list[Any] = [Patch(color=colour, label=name) for name, colour in STATES.items()]
    handles.append(Line2D([], [], color=INTENDED, linewidth=2, label="intended"))
    for name, label in (("delta_sent", "writes sent to the owner"), ("refreshed", "refreshed by the owner")):
        if name in shown:
            marker: dict[str, Any] = {"marker": MARKS[name], "color": "#9a9fa8", "linestyle": "", "markersize": 5}
            handles.append(Line2D([], [], label=label, **marker))
    if "parked" in shown or "forwarded" in shown:
        handles.append(
            Line2D([], [], marker="x", color=MARK, linestyle="", markersize=4, label="a request waits or goes on")
        )
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(-0.01, 0.995), ncols=len(handles), fontsize=8,
        handlelength=1.2, columnspacing=1.2, borderaxespad=0.2,
    )  # fmt: skip


# -- totals ------------------------------------------------------------------------------------------------------------


def _draw_totals(axes: Sequence[Axes], events: Sequence[Mapping[str, Any]], ranks: int, scale: Scale) -> None:
    counters = [event for event in events if event["ph"] == "C"]
    _draw_counter(axes[0], counters, "relocations", "in", "relocated\nkeys", ranks, scale)
    _draw_counter(axes[1], counters, "replicas", "held", "replicas\nheld", ranks, scale, since_start=False)
    _draw_counter(axes[2], counters, "bytes", "sent", "MB sent", ranks, scale, unit=1e6)
    if ranks <= MOST_LINES:
        axes[0].legend(fontsize=7, ncols=ranks, loc="upper left", handlelength=1.2)


def _draw_counter(
    axes: Axes, counters: Iterable[Mapping[str, Any]], name: str, value: str, label: str, ranks: int, scale: Scale,
    unit: float = 1.0, since_start: bool = True,
) -> None:  # fmt: skip
    """A line per rank; one counter, from where it stood when the trace began if it only grows."""
    lines: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for event in counters:
        if event["name"] == name and event["pid"] < KEY_PIDS:
            lines[event["pid"] - 1].append((event["ts"] / scale.us, event["args"][value] / unit))
    for rank, points in sorted(lines.items()):
        times, values = zip(*points, strict=True)
        base = values[0] if since_start else 0
        colour: dict[str, Any] = {} if ranks <= MOST_LINES else {"color": "#1f5fbf", "alpha": 0.3}
        axes.step(times, [v - base for v in values], where="post", linewidth=1.2, label=f"rank {rank}", **colour)
    axes.set_ylabel(label, fontsize=8)
    axes.tick_params("y", labelsize=8)
    axes.set_ylim(bottom=0)
