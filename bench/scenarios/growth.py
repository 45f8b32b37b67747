"""Cost of single operations as keys, replicas, intents and ranks grow a hundredfold: none may grow faster than they.

Each curve's ``exponent`` (slope of the cost over the size, both in logarithms, by least squares) is in the notes of its
cases: 0 is a cost that does not depend on the size, 1 is a cost in proportion. The size of "ranks" is how many others
there are. Keys, replicas and intents grow in a job of two real ranks, of which rank 1 measures and rank 0 owns what is
asked for; ranks grow in a simulated job, where every rank does the same and the cost is per rank: time on the network,
messages, and processor time, of which the simulator takes the larger part.
"""

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.benchmarks import SUBJECT, Case
from intentpm.bench.links import usable_links
from intentpm.bench.scenarios.simulated_job import simulated_job

OPERATION_KEYS = 100
"""All operations are about so many, however large the rest is."""
DIM = 16
BASE = {"num_keys": 400_000, "replicas": 1000, "intents": 0}
AXES: Mapping[str, tuple[str, Sequence[int]]] = {
    "keys": ("num_keys", (20_000, 200_000, 2_000_000)),
    "replicas": ("replicas", (1000, 10_000, 100_000)),
    "intents": ("intents", (1000, 10_000, 100_000)),
}
RANKS, SIMULATED_KEYS = (2, 20, 200), 20_000
REPEATS, CASE_S = 200, 0.5
TIMEOUT_S = 90.0
OWNER, HOLDER = 0, 1
CHANGING_KEYS = 1000
"""Keys that the owner intends for good, and the holder again and again."""
FOR_GOOD = 1 << 40
KEYS_PER_INTENT = 10


def measure(effort: float) -> list[Case]:
    """Seconds per operation on OPERATION_KEYS keys; bytes of the index, of the replicas, of the intents."""
    points = 3 if effort >= 0.2 else 2
    link, repeats, cases = usable_links()[0], max(10, round(REPEATS * effort)), []
    for axis, (name, sizes) in AXES.items():
        for size in sizes[:points]:
            arguments = {**BASE, name: size}
            measured = link.run("growth", 2, {**arguments, "repeats": repeats}, TIMEOUT_S)[HOLDER]
            info = {**arguments, "keys": OPERATION_KEYS, "dim": DIM, "ranks": 2, "transport": link.name}
            cases += _cases(measured["seconds"], {"memory": [measured["bytes"][axis]]}, axis, size, info)
    for ranks in RANKS[:points]:
        taken, index = _simulate(ranks, max(2, round(4 * min(1.0, effort))))
        info = {"num_keys": SIMULATED_KEYS, "keys": OPERATION_KEYS, "dim": DIM, "ranks": ranks, "transport": "sim"}
        cases += _cases(taken, {"memory": [index]}, "ranks", ranks - 1, info)
    return with_exponents(cases)


def _cases(
    seconds: Mapping[str, Sequence[float]], memory: Mapping[str, Sequence[float]], axis: str, size: int, info: Any
) -> list[Case]:
    info = {"situation": f"growing {axis}", **info, "notes": {"axis": axis, "size": size}}
    return [
        Case(
            "pull" if name == "np.take" else name, samples, "np.take" if name == "np.take" else SUBJECT,
            "B" if name == "memory" else "messages" if name.endswith("messages") else "s", info,
        )
        for name, samples in {**seconds, **memory}.items()
    ]  # fmt: skip


def with_exponents(cases: Sequence[Case]) -> list[Case]:
    """The same, with ``exponent`` among the notes."""
    curves: dict[tuple[str, str, str], list[Case]] = {}
    for case in cases:
        curves.setdefault((case.operation, case.by, case.info["situation"]), []).append(case)
    found = []
    for curve in curves.values():
        slope = exponent([(case.info["notes"]["size"], float(np.median(case.samples))) for case in curve])
        notes = [{**case.info["notes"], "exponent": slope} for case in curve]
        found += [replace(case, info={**case.info, "notes": note}) for case, note in zip(curve, notes, strict=True)]
    return found


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """Slope of log(value) over log(size), by least squares. Values are > 0, sizes differ."""
    sizes, values = np.log(np.array(points, np.float64)).T
    return float(np.polyfit(sizes, values, 1)[0])


# -- two real ranks ----------------------------------------------------------------------------------------------------


def run_rank(pm: Any, arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """``arguments``: num_keys; replicas that rank 1 holds; intents of KEYS_PER_INTENT keys that it has signalled, half
    of them active, half for a far future.

    Rank 1 returns "seconds" per "pull", "np.take" of as many rows, "round" (writes to replicas, and wait_sync) and
    "intent" (replicas wanted, there, let go and gone), and "bytes" of the index of all "keys", of "replicas" and of
    "intents".
    """
    table, worker = pm.create_table("rows", arguments["num_keys"], (DIM,), init=1.0), pm.worker()
    owned = table.owned_keys()
    at_owner = owned if pm.rank == OWNER else np.setdiff1d(np.arange(table.num_keys), owned)
    changing, held = np.split(at_owner[: CHANGING_KEYS + arguments["replicas"]], [CHANGING_KEYS])
    if pm.rank == OWNER:  # first, so that the keys stay here
        worker.intent(table, np.concatenate([changing, held]), 0, FOR_GOOD)
        worker.wait_sync()
    pm.barrier()
    result: dict[str, Any] = {}
    if pm.rank == HOLDER:
        empty = table.memory()
        worker.intent(table, held, 0, FOR_GOOD)
        worker.wait_sync()
        filled, before = table.memory(), _allocated_bytes()
        _signal(worker, table, owned, arguments["intents"])
        result["bytes"] = {
            "keys": empty["index"],
            "replicas": sum(filled.values()) - sum(empty.values()),
            "intents": _allocated_bytes() - before,
        }
        result["seconds"] = _time_operations(worker, table, owned, held, changing, arguments["repeats"])
    pm.barrier()
    return result


def _signal(worker: Any, table: Any, owned: NDArray[np.int64], count: int) -> None:
    random = np.random.default_rng(0)
    for number in range(count):
        start = 0 if number % 2 else FOR_GOOD
        worker.intent(table, random.choice(owned, KEYS_PER_INTENT), start, 2 * FOR_GOOD)
    worker.wait_sync()


class MallInfo(ctypes.Structure):
    """glibc's ``struct mallinfo2`` (2.33 or newer)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


def _allocated_bytes() -> int:
    """What malloc has handed out: resident memory would not show what was free before."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MallInfo
    found = libc.mallinfo2()
    return int(found.uordblks + found.hblkhd)


def _time_operations(
    worker: Any, table: Any, owned: Any, held: Any, changing: Any, repeats: int
) -> dict[str, list[float]]:
    """Seconds per call, by operation; new keys at each call."""
    here, random = np.concatenate([owned, held]), np.random.default_rng(0)
    rows, array = np.ones((OPERATION_KEYS, DIM), np.float32), np.ones((len(here), DIM), np.float32)

    def write(keys: NDArray[np.int64]) -> None:
        worker.push(table, keys, rows)
        worker.wait_sync()

    def timed(among: NDArray[np.int64], call: Callable[[NDArray[np.int64]], object]) -> list[float]:
        end, samples = time.perf_counter() + CASE_S, list[float]()
        while len(samples) < repeats + 5 and (len(samples) < 6 or time.perf_counter() < end):
            keys = random.choice(among, OPERATION_KEYS, replace=False)
            start = time.perf_counter()
            call(keys)
            samples.append(time.perf_counter() - start)
        return samples[5:]

    return {
        "pull": timed(here, lambda keys: worker.pull(table, keys, rows)),
        "np.take": timed(np.arange(len(here)), lambda keys: np.take(array, keys, 0, rows, "clip")),
        "round": timed(held, write),
        "intent": timed(changing, lambda keys: _intend(worker, table, keys)),
    }


def _intend(worker: Any, table: Any, keys: NDArray[np.int64]) -> None:
    """Until the keys have come, and gone again."""
    worker.intent(table, keys, worker.clock)
    worker.wait_sync()
    worker.advance_clock()
    worker.wait_sync()


# -- simulated ranks ---------------------------------------------------------------------------------------------------


def _simulate(ranks: int, repeats: int) -> tuple[dict[str, list[float]], float]:
    """Samples of "pull, network" and the like, per call and rank; bytes of the index per rank.

    Virtual seconds are what the network takes. All ranks share this process, and one thread runs at a time: real
    seconds divided by the ranks are what one rank's processor does, for its own calls and for those of others, and, for
    the most part, what the simulator's queue of events costs.
    """
    with simulated_job(ranks) as job:
        tables = job.on_every_rank(lambda pm: pm.create_table("rows", SIMULATED_KEYS, (DIM,)))
        workers = job.on_every_rank(lambda pm: pm.worker())
        randoms = [np.random.default_rng([7, rank]) for rank in range(ranks)]
        shared, ones = np.arange(OPERATION_KEYS), np.ones((OPERATION_KEYS, DIM), np.float32)

        def keys_of(rank: int) -> NDArray[np.int64]:
            # Not the first ones: all ranks hold those for the rounds.
            drawn = randoms[rank].choice(SIMULATED_KEYS - OPERATION_KEYS, OPERATION_KEYS, replace=False)
            return OPERATION_KEYS + drawn

        def messages() -> int:
            return sum(sum(count) for count, _ in job.network.traffic().values())

        def timed(name: str, call: Callable[[int], object]) -> dict[str, list[float]]:
            taken: dict[str, list[float]] = {f"{name}, {kind}": [] for kind in ("network", "processor", "messages")}
            for _ in range(repeats + 1):
                before = job.now_s, time.perf_counter(), messages()
                job.on_every_rank(lambda pm: call(pm.rank))
                after = job.now_s, time.perf_counter(), messages()
                spent = [(new - old) / each for new, old, each in zip(after, before, (1, ranks, ranks), strict=True)]
                for samples, value in zip(taken.values(), spent, strict=True):
                    samples.append(value)
            return {kind: samples[1:] for kind, samples in taken.items()}

        def hold(rank: int) -> None:
            workers[rank].intent(tables[rank], shared, 0, FOR_GOOD)
            workers[rank].wait_sync()

        def write(rank: int) -> None:
            """Every rank writes to the same keys, which all hold."""
            workers[rank].push(tables[rank], shared, ones)
            workers[rank].wait_sync()

        seconds = timed("pull", lambda rank: workers[rank].pull(tables[rank], keys_of(rank)))
        seconds |= timed("intent", lambda rank: _intend(workers[rank], tables[rank], keys_of(rank)))
        job.on_every_rank(lambda pm: hold(pm.rank))
        seconds |= timed("round", write)
        return seconds, float(np.mean([table.memory()["index"] for table in tables]))
