"""Remote pull and push between two ranks: rank 1 asks, rank 0 serves.

Three situations: requests back to back; one request each ``interval_s``, so that the server has gone to sleep; and back
to back while the main thread of the server runs pure Python without a pause.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TABLE = "rows"
SERVER, CLIENT = 0, 1
WARM_UP = 5
SITUATIONS = ("back to back", "spaced", "busy server")


def run_rank(pm: Any, arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the client's cases: situation, operation, keys and samples (seconds per call)."""
    table = pm.create_table(
        TABLE, num_keys=arguments["num_keys"], row_shape=(arguments["dim"],), dtype="float32", init=1.0
    )
    client = Client(pm, table, arguments) if pm.rank == CLIENT else None
    cases: list[dict[str, Any]] = []
    for situation in SITUATIONS:
        for batch_size in arguments["batch_sizes"]:
            for operation in ("pull", "push"):
                pm.barrier()
                if client is not None:
                    samples = client.measure(situation, operation, batch_size)
                    cases.append(
                        {"situation": situation, "operation": operation, "keys": batch_size, "samples": samples}
                    )
                elif situation == "busy server":
                    _spin(arguments["case_s"])
    pm.barrier()
    return {"rank": pm.rank, "transport": pm.stats().get("transport"), "cases": cases}


def _spin(seconds: float) -> None:
    """Pure Python that never gives up the GIL by itself."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


class Client:
    """Measures requests for keys that are all at the server."""

    def __init__(self, pm: Any, table: Any, arguments: dict[str, Any]) -> None:
        self.worker, self.table = pm.worker(), table
        self.case_s, self.interval_s = arguments["case_s"], arguments["interval_s"]
        self.repeats = arguments["repeats"]
        self.random = np.random.default_rng(arguments["seed"])
        self.dim = arguments["dim"]
        self.keys = self._remote_keys(pm, arguments["num_keys"])

    def measure(self, situation: str, operation: str, batch_size: int) -> list[float]:
        """Seconds per call, for ``repeats`` calls or as many as fit into ``case_s``."""
        call = self._call(operation, self.random.choice(self.keys, batch_size))
        for _ in range(WARM_UP):
            call()
        pause = self.interval_s if situation == "spaced" else 0.0
        # The busy server spins for case_s: stop measuring before it does.
        end = time.perf_counter() + 0.8 * self.case_s
        samples: list[float] = []
        while len(samples) < self.repeats and time.perf_counter() < end:
            if pause:
                time.sleep(pause)
            start = time.perf_counter()
            call()
            samples.append(time.perf_counter() - start)
        return samples

    def _call(self, operation: str, keys: NDArray[np.int64]) -> Callable[[], object]:
        rows = np.ones((len(keys), self.dim), np.float32)
        if operation == "pull":
            return lambda: self.worker.pull(self.table, keys, rows)
        return lambda: self.worker.push(self.table, keys, rows)

    def _remote_keys(self, pm: Any, num_keys: int) -> NDArray[np.int64]:
        """The keys whose access the PM counts as remote, found by accessing each."""

        def remote() -> int:
            return int(pm.stats()["tables"][TABLE]["remote"])

        found, before = [], remote()
        for key in range(num_keys):
            self.worker.pull(self.table, np.array([key]))
            after = remote()
            if after > before:
                found.append(key)
            before = after
        if not found:
            raise RuntimeError(f"none of the {num_keys} keys is at another rank")
        return np.array(found, np.int64)
