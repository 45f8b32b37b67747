"""What single operations cost per rank as the number of ranks grows, in a simulated job where all ranks do the same.

Virtual seconds are what the network takes. All ranks share this process, and one thread runs at a time: real seconds
divided by the ranks are what one rank's processor does, for its own calls and for those of others, and, for the most
part, what the simulator's queue of events costs.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from intentpm.bench.scenarios.growing import FOR_GOOD, OPERATION_KEYS
from intentpm.bench.scenarios.simulated_job import SimulatedJob, simulated_job

Call = Callable[[Any, Any, Any, np.random.Generator], None]


def grow_ranks(ranks: int, arguments: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """For "pull" (remote), "round" and "intent": samples of "network" and "processor" seconds and of "messages", each
    per call and rank. "bytes": the "index" bytes per rank.

    ``arguments``: num_keys, dim, repeats.
    """
    with simulated_job(ranks) as job:
        tables = job.on_every_rank(lambda pm: pm.create_table("rows", arguments["num_keys"], (arguments["dim"],)))
        workers = job.on_every_rank(lambda pm: pm.worker())
        randoms = [np.random.default_rng([7, rank]) for rank in range(ranks)]

        def timed(call: Call) -> dict[str, list[float]]:
            samples: dict[str, list[float]] = {"network": [], "processor": [], "messages": []}
            for _ in range(arguments["repeats"] + 1):
                virtual_s, real_s, sent = job.now_s, time.perf_counter(), _messages(job)
                _everywhere(job, lambda rank: call(workers[rank], tables[rank], arguments, randoms[rank]))
                samples["processor"].append((time.perf_counter() - real_s) / ranks)
                samples["network"].append(job.now_s - virtual_s)
                samples["messages"].append((_messages(job) - sent) / ranks)
            return {kind: taken[1:] for kind, taken in samples.items()}

        result = {"pull": timed(_pull), "intent": timed(_intent)}
        _everywhere(job, lambda rank: _hold(workers[rank], tables[rank]))
        result["round"] = timed(_round)
        result["bytes"] = {"index": [float(np.mean([table.memory()["index"] for table in tables]))]}
    return result


def _everywhere(job: SimulatedJob, call: Callable[[int], None]) -> None:
    job.on_every_rank(lambda pm: call(pm.rank))


def _messages(job: SimulatedJob) -> int:
    return sum(sum(messages) for messages, _ in job.network.traffic().values())


def _keys(arguments: Mapping[str, Any], random: np.random.Generator) -> Any:
    # Not the first ones: all ranks hold those for the rounds.
    return OPERATION_KEYS + random.choice(arguments["num_keys"] - OPERATION_KEYS, OPERATION_KEYS, replace=False)


def _pull(worker: Any, table: Any, arguments: Mapping[str, Any], random: np.random.Generator) -> None:
    worker.pull(table, _keys(arguments, random))


def _intent(worker: Any, table: Any, arguments: Mapping[str, Any], random: np.random.Generator) -> None:
    worker.intent(table, _keys(arguments, random), worker.clock)
    worker.wait_sync()
    worker.advance_clock()
    worker.wait_sync()


def _hold(worker: Any, table: Any) -> None:
    worker.intent(table, np.arange(OPERATION_KEYS), 0, FOR_GOOD)
    worker.wait_sync()


def _round(worker: Any, table: Any, arguments: Mapping[str, Any], random: np.random.Generator) -> None:
    """Every rank writes to the same keys, which all hold."""
    worker.push(table, np.arange(OPERATION_KEYS), np.ones((OPERATION_KEYS, arguments["dim"]), np.float32))
    worker.wait_sync()
