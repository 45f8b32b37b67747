"""The parts of the suite, by name.

A part is a module ``intentpm.bench.suite.NAME`` with

* ``measure(effort: float) -> list[Row]``: measures everything once. ``effort`` 1.0 is the full run; a smaller one takes
  fewer samples and smaller sizes, down to 0.05 for a smoke run of a few seconds. It starts its own ranks, if any,
  leaves no process behind, and leaves out what this machine lacks (no ucx, no mpi4py, no torch).
* ``draw(rows: Sequence[Mapping], figure: matplotlib Figure) -> None``, optional: one plot of the rows, as a results
  file holds them (``samples`` of all repeats joined).

How rows are told apart, so that the table of targets (``targets.py``), ``compare`` and the plots find them:

* ``name``: what was done, such as "pull", "push", "set", "intent", "due to local".
* ``facts["by"]``: "intentpm", or the name of the baseline or limit measured in the same run ("np.take", "memcpy",
  "ucx_perftest round trip", "mpi4py Win.Get").
* ``facts["situation"]``, where a part has several: "back to back", "spaced", "python loop", "numpy", "torch".
* ``transport``: "ucx-shm", "ucx-tcp", "ucx" (the way it chooses itself), "tcp", "sim" or "none". ``ranks``: of the job.
* ``sizes``: "keys" (per call), "dim", "num_keys", "threads", "replicas" and the like; whole numbers.
* ``samples`` in ``unit``: "s" for the time of one call, "B" for bytes, "rows/s", "B/s", "share".

All of these together make a case; no two rows of one run may have the same. Facts that are not texts are notes.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from intentpm.bench.results import Row

SUBJECT = "intentpm"
"""``facts["by"]`` of what is ours."""

PARTS: Mapping[str, str] = {
    "local": "local pull, push and set of K rows next to NumPy, PyTorch and memcpy",
    "threads": "the same with 1, 2 and 4 threads, on the same keys and on different ones",
    "memory": "bytes per key and rank beyond the rows, and per replica",
    "intents_cost": "cost of signalling an intent and of advance_clock",
    "idle_cost": "processor time and bytes of a job that does nothing",
    "remote": "remote pull and push over each transport next to perftest, mpi4py and torch RPC",
    "busy_server": "the same pull while the serving rank computes: pure Python, numpy, torch",
    "due_to_local": "time from an intent's being due until its keys are local",
    "relocation": "rows and bytes relocated per second",
    "refresh": "rows refreshed per second, and staleness under load",
    "scaling": "time, bytes and messages per rank and round as the job grows, real and simulated",
    "growth": "cost as keys, replicas, ranks and intents grow tenfold",
}
"""Name and what it measures; in the order in which they run."""


@dataclass(frozen=True, slots=True)
class Part:
    """One loaded part of the suite."""

    name: str
    measure: Callable[[float], list[Row]]
    draw: Callable[[Sequence[Mapping[str, Any]], Any], None] | None


def load(name: str) -> Part:
    """Imports the part ``name``. KeyError: there is none of that name."""
    PARTS[name]
    module = importlib.import_module(f"{__package__}.{name}")
    return Part(name, module.measure, getattr(module, "draw", None))
