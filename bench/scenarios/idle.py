"""An idle job: every rank holds replicas of all keys it does not own, and nothing happens. What does that cost?"""

import time
from pathlib import Path
from typing import Any

import numpy as np

SETTLE_S = 0.5


def run_rank(pm: Any, arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Intends all keys, waits until they are here, then sleeps; returns CPU seconds and bytes sent meanwhile."""
    table = pm.create_table("rows", arguments["num_keys"], (arguments["dim"],), init=1.0)
    worker = pm.worker()
    start = time.perf_counter()
    worker.intent(table, np.arange(table.num_keys), 0, 1_000_000)
    worker.wait_sync()
    pm.barrier()
    replicated_s = time.perf_counter() - start
    time.sleep(SETTLE_S)
    before, cpu_before = pm.stats(), time.process_time()
    time.sleep(arguments["seconds"])
    after, cpu_after = pm.stats(), time.process_time()
    return {
        "rank": pm.rank,
        "replicas": len(table.replica_keys()),
        "replicated_s": replicated_s,
        "seconds": arguments["seconds"],
        "cpu_s": cpu_after - cpu_before,
        "bytes_sent": after["bytes_sent"] - before["bytes_sent"],
        "messages_sent": after["messages_sent"] - before["messages_sent"],
    }
