"""A page of what was measured on a device: JSON for programs, Markdown for people, with the goals of an H100."""

from typing import Any

from intentpm.bench.scenarios.device_rows import Measured

GOALS_MS = {
    "gather": 0.38,
    "step, SGD": 1.05,
    "step, RowwiseAdagrad": 1.1,
    "step, Adam": 1.5,
}
"""Of an H100: 1.05 million look-ups by a power law of 1.05, 128 float32 a row, all rows in device memory."""
COPY_SHARE = 0.7
"""Of the card's copy bandwidth, that a gather shall reach."""


def document(card: str, measured: list[Measured], facts: dict[str, Any]) -> dict[str, Any]:
    """All of it. ``facts``: versions, sizes, and what the tests said."""
    rows = [each.describe() for each in measured]
    copy = next(row for row in rows if row["by"] == "the driver")
    for row in rows:
        row["of_copy"] = row["gb_s"] / copy["gb_s"]
        goal = GOALS_MS.get(row["name"]) if row["by"] == "intentpm" and "H100" in card else None
        if goal is not None:
            row |= {"goal_ms": goal, "reached": row["median_ms"] <= goal}
    gather = next(row for row in rows if row["name"] == "gather" and row["by"] == "intentpm")
    return {"card": card, "facts": facts, "gather_of_copy": gather["of_copy"], "measured": rows}


def page(result: dict[str, Any]) -> str:
    """The document as Markdown."""
    lines = [f"# Rows in device memory: {result['card']}", ""]
    lines += [f"* {name}: {value}" for name, value in result["facts"].items()]
    lines += ["", "| what | by | median ms | GB/s | of the copy | goal |", "| --- | --- | --- | --- | --- | --- |"]
    for row in result["measured"]:
        goal = f"{row['goal_ms']} ms: {'reached' if row['reached'] else 'missed'}" if "goal_ms" in row else ""
        numbers = f"{row['median_ms']:.3f} | {row['gb_s']:.0f} | {row['of_copy']:.2f}"
        lines.append(f"| {row['name']} | {row['by']} | {numbers} | {goal} |")
    wanted = f"{result['gather_of_copy']:.2f} of the copy's bandwidth (goal: {COPY_SHARE})"
    lines += ["", f"A gather reaches {wanted}. GB/s: bytes that cannot be avoided, over the time.", ""]
    return "\n".join(lines)
