"""Rows of results files as cases: what tells one row from another, and its samples of all runs together."""

from collections.abc import Iterable, Mapping
from typing import Any

RUN = "run"
"""``facts["run"]``: number of the run a row belongs to, when the suite ran several times."""

# A row as a results file holds it: the fields of ``bench.results.Row``.
RowMapping = Mapping[str, Any]
CaseKey = tuple[tuple[str, Any], ...]


def case_key(row: RowMapping) -> CaseKey:
    """What was measured and how: name, transport, ranks, unit, sizes, and those facts that are texts.

    Other facts are notes: numbers may differ from run to run.
    """
    plain = [("name", row["name"]), ("transport", row["transport"]), ("ranks", row["ranks"]), ("unit", row["unit"])]
    sizes = sorted(row["sizes"].items())
    facts = sorted((name, value) for name, value in row["facts"].items() if isinstance(value, str))
    return (*plain, *sizes, *facts)


def join_runs(rows: Iterable[RowMapping]) -> list[dict[str, Any]]:
    """One row per case, with the samples of all its rows, in the order in which the cases first appear."""
    joined: dict[CaseKey, dict[str, Any]] = {}
    for row in rows:
        case = joined.setdefault(case_key(row), {**row, "facts": {**row["facts"]}, "samples": []})
        case["facts"].pop(RUN, None)
        case["samples"] += row["samples"]
    return list(joined.values())


def runs_of(rows: Iterable[RowMapping]) -> list[list[RowMapping]]:
    """The rows of each run."""
    runs: dict[int, list[RowMapping]] = {}
    for row in rows:
        runs.setdefault(row["facts"].get(RUN, 0), []).append(row)
    return [runs[number] for number in sorted(runs)]


def describe_case(row: RowMapping) -> str:
    """The case for people, such as "pull, 100 keys, dim 64, by np.take"."""
    parts = [row["name"]]
    if row["transport"] != "none":
        parts.append(f"{row['transport']}, {row['ranks']} ranks")
    parts += [f"{name} {value:,}" for name, value in row["sizes"].items()]
    parts += [f"{name} {value}" for name, value in row["facts"].items() if isinstance(value, str)]
    return ", ".join(parts)
