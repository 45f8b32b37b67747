"""Remote pull and push between two ranks: rank 1 asks, rank 0 serves.

Situations: requests "back to back"; "spaced", one each ``interval_s``, so that the server has gone to sleep; and back
to back while the main thread of the server repeats one of ``busy_loops`` without a pause.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.scenarios.busy_loops import BUSY_LOOPS, spin
from intentpm.bench.scenarios.calls import timed_calls

SERVER, CLIENT = 0, 1
BUSY_SHARE = 0.8
"""The busy server is busy for ``case_s``: the client stops before it does."""


def run_rank(pm: Any, arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Measures ``arguments["cases"]``: pairs of situation, operation ("pull", "push") and keys per call.

    Returns the client's cases with their samples (seconds per call).
    """
    table = pm.create_table(
        "rows", num_keys=arguments["num_keys"], row_shape=(arguments["dim"],), dtype="float32", init=1.0
    )
    client = Client(pm, table, arguments) if pm.rank == CLIENT else None
    cases: list[dict[str, Any]] = []
    for situation, operation, keys in arguments["cases"]:
        step = BUSY_LOOPS[situation]() if situation in BUSY_LOOPS else None
        pm.barrier()
        if client is not None:
            samples = client.measure(situation, operation, keys)
            cases.append({"situation": situation, "operation": operation, "keys": keys, "samples": samples})
        elif step is not None:
            spin(step, arguments["case_s"])
    pm.barrier()
    return {"rank": pm.rank, "cases": cases}


class Client:
    """Measures requests for keys that are all at the server."""

    def __init__(self, pm: Any, table: Any, arguments: dict[str, Any]) -> None:
        self.worker, self.table = pm.worker(), table
        self.case_s, self.interval_s = arguments["case_s"], arguments["interval_s"]
        self.repeats = arguments["repeats"]
        self.random = np.random.default_rng(arguments["seed"])
        self.dim = arguments["dim"]
        self.keys = np.setdiff1d(np.arange(arguments["num_keys"]), table.owned_keys())

    def measure(self, situation: str, operation: str, keys: int) -> list[float]:
        """Seconds per call, for ``repeats`` calls or as many as fit into ``case_s``."""
        chosen = self.random.choice(self.keys, keys, replace=keys > len(self.keys))
        pause_s = self.interval_s if situation == "spaced" else 0.0
        return timed_calls(self._call(operation, chosen), self.repeats, BUSY_SHARE * self.case_s, pause_s)

    def _call(self, operation: str, keys: NDArray[np.int64]) -> Callable[[], object]:
        rows = np.ones((len(keys), self.dim), np.float32)
        if operation == "pull":
            return lambda: self.worker.pull(self.table, keys, rows)
        return lambda: self.worker.push(self.table, keys, rows)
