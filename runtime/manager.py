"""ParameterManager: builds a rank from configuration, world and transport, and starts and stops it.

Start: engine, progress thread.  Stop: workers settle their writes, the ranks leave together (each serves until all have
left), progress thread, transport, world. After a failure: tell the peers why, then the same without waiting for them.
"""

import contextlib
import itertools
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from intentpm.foundation.errors import (
    CollectiveMismatchError,
    Error,
    KeyRangeError,
    MemoryBudgetError,
    ShapeError,
)
from intentpm.foundation.losses import how_it_failed
from intentpm.runtime._native.engine import Engine
from intentpm.runtime._native.inspection import Inspector
from intentpm.runtime._native.slabs import stride_for
from intentpm.runtime._native.store import Table, resolve_dtype
from intentpm.runtime.config import Config, Management
from intentpm.runtime.ending import forget, watch, why_failed
from intentpm.runtime.explain import KeyReport, read_report
from intentpm.runtime.explain import ask_owner as find_owner
from intentpm.runtime.initial_rows import Init, describe_init, fill_table
from intentpm.runtime.sampling import POOL_SIZE, POOL_USES, Sampling, Scheme
from intentpm.runtime.stats import gather_stats
from intentpm.runtime.trace import begin_trace, gather_traces, write_document
from intentpm.runtime.types import World
from intentpm.runtime.worker import Worker, as_keys

MAX_KEYS = 2**31 - 1
CLOSE_FLUSH_S = 5.0


class ParameterManager:
    """One rank of a job: its tables, workers and connections. Made by ``intentpm.init()``; use it in a with block.

    Collective calls (``create_table``, ``barrier``, ``allgather``, ``close``) must be made by every rank in the same
    order, by one thread at a time.
    """

    def __init__(self, config: Config, world: World, transport: Any) -> None:
        """transport: connected to all ranks of ``world``. Takes ownership of both."""
        self.config = config
        self.rank: int = world.rank
        self.size: int = world.size
        self._world = world
        self._transport = transport
        self._tables: dict[str, Table] = {}
        self._workers: list[Worker] = []
        self._worker_ids = itertools.count()
        self._samplings: dict[int, Sampling] = {}
        self._closed = False
        worker_spin_us, thread_spin_us = spin_times_us(config.spin_us, _cores(), world.local_ranks)
        self._engine = Engine(
            transport,
            config.peer_timeout,
            worker_spin_us,
            thread_spin_us,
            get_args(Management).index(config.management),
            config.sync_interval,
            config.sync_threshold,
            config.memory_budget or 0,
        )
        self._inspector = Inspector(self._engine)
        self._started_ns: int = self._inspector.now_ns()
        self._asking = threading.Lock()
        self._thread: threading.Thread | None = None
        if world.size > 1 and not transport.virtual_time:
            self._thread = threading.Thread(target=self._engine.run, name="intentpm-progress", daemon=True)
            self._thread.start()
        watch(self)

    # -- tables and workers --------------------------------------------------------------------------------------------

    def create_table(
        self,
        name: str,
        num_keys: int,
        row_shape: int | tuple[int, ...] = (),
        dtype: npt.DTypeLike = "float32",
        init: Init = 0.0,
    ) -> Table:
        """Collective. Makes a table of ``num_keys`` rows, spread over the ranks.

        Parameters
            num_keys: 1 to 2^31 - 1; keys are 0 to num_keys - 1.
            row_shape: shape of one row; () for one number.
            dtype: float32, float64, float16, bfloat16 (needs ml_dtypes), int32 or int64.
            init: a number; an array [num_keys, *row_shape] or [*row_shape]; or a callable that is given int64 keys [K]
                and returns their rows [K, *row_shape]. Each rank evaluates it for the keys it starts with.
        Raises, on every rank: CollectiveMismatchError when the ranks' arguments differ; ShapeError, DtypeError, Error,
        MemoryBudgetError for arguments that cannot be used (the other ranks: Error naming the rank); PeerLostError.
        """
        self._engine.check()
        table, problem = self._make_table(name, num_keys, row_shape, dtype, init)
        if table is not None:
            self._engine.add_table(table)
        try:
            self._agree_on_table(name, num_keys, row_shape, dtype, init, problem)
        except Error:
            if table is not None:
                self._engine.remove_last_table()
            raise
        assert table is not None
        self._tables[name] = table
        self._engine.replicate_all(table)
        return table

    def _make_table(
        self, name: str, num_keys: int, row_shape: Any, dtype: npt.DTypeLike, init: Init
    ) -> tuple[Table | None, Exception | None]:
        """The table with its initial rows, or why there is none: other ranks must hear of it before this one raises."""
        try:
            shape = _row_shape(row_shape)
            if name in self._tables:
                raise Error(f"table {name!r} exists already: choose another name")
            if not isinstance(num_keys, int | np.integer) or not 0 < num_keys <= MAX_KEYS:
                raise ShapeError(f"table {name!r}: num_keys={num_keys!r}: needs 1 to {MAX_KEYS}")
            self._check_budget(name, int(num_keys), shape, dtype)
            table = Table(name, len(self._tables), int(num_keys), shape, dtype, self.rank, self.size)
            fill_table(table, init)
        except Exception as problem:  # an init callable may raise anything
            return None, problem
        return table, None

    def _check_budget(self, name: str, num_keys: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        budget = self.config.memory_budget
        if budget is None:
            return
        stride = stride_for(int(np.prod(shape, dtype=np.int64)) * resolve_dtype(dtype).itemsize)
        needed = -(-num_keys // self.size) * stride
        used = sum(table.memory()["rows"] for table in self._tables.values())
        if used + needed > budget:
            raise MemoryBudgetError(
                f"table {name!r}: this rank's share needs {needed} bytes and {used} are in use, of a memory_budget of "
                f"{budget}: raise it (init(memory_budget=...), INTENTPM_MEMORY_BUDGET) or use more ranks"
            )

    def _agree_on_table(
        self, name: str, num_keys: Any, row_shape: Any, dtype: Any, init: Init, problem: Exception | None
    ) -> None:
        arguments = {
            "name": name,
            "num_keys": repr(num_keys),
            "row_shape": repr(row_shape),
            "dtype": repr(dtype),
            "init": describe_init(init),
        }
        answers = self._collective("create_table", arguments, {"problem": repr(problem) if problem else None})
        if problem is not None:
            raise problem
        for rank, answer in enumerate(answers):
            if answer["problem"]:
                raise Error(f"table {name!r} was not made: rank {rank} failed with {answer['problem']}")

    def worker(self) -> Worker:
        """A new worker for the calling thread; its clock starts at 0. Not collective."""
        self._engine.check()
        worker = Worker(self, self._engine, next(self._worker_ids))
        self._workers.append(worker)
        return worker

    def create_sampling(
        self,
        table: Table,
        distribution: str | npt.ArrayLike = "uniform",
        scheme: Scheme = "preloc",
        replacement: bool = True,
        pool_size: int = POOL_SIZE,
        pool_uses: int = POOL_USES,
        seed: int | None = None,
    ) -> Sampling:
        """Declares how samples of ``table`` are drawn on this rank. Not collective.

        ``worker.prepare_sample(sampling, ...)`` draws by it, ``worker.prepare_sample(table, ...)`` by the one last
        declared for the table; a table without any has the defaults.

        Parameters
            distribution: "uniform"; "log-uniform", P(key) = log((key + 2) / (key + 1)) / log(num_keys + 1), for keys
                sorted by falling frequency; or weights, numbers >= 0 [num_keys].
            scheme: "naive": draws when pulled and reads from wherever the keys are. "preloc": draws when prepared and
                signals intent. "pool": as preloc, from a pool of ``pool_size`` keys of which each is drawn
                ``pool_uses`` times before the pool is drawn anew; the rank's workers share it. "local": draws when
                pulled, among the keys that are on this rank (with the target's probabilities conditional on these). It
                departs from the distribution: ``sampling.stats()`` says how far. Where few keys are local, it draws as
                naive does.
            replacement: False: the keys of one sample are distinct, each drawn from those not drawn before it.
            seed: default: that of the job (``init(seed=...)``). Ranks and workers have different streams in any case.
        Raises SampleError.
        """
        self._engine.check()
        chosen = self.config.seed if seed is None else seed
        sampling = Sampling(
            table, distribution, scheme, replacement, pool_size, pool_uses, chosen, rank=self.rank, size=self.size
        )
        self._samplings[table.table_id] = sampling
        return sampling

    def sampling(self, table: Table) -> Sampling:
        """The sampling last declared for ``table``; declares one with the defaults if there is none."""
        found = self._samplings.get(table.table_id)
        return self.create_sampling(table) if found is None else found

    # -- collectives ---------------------------------------------------------------------------------------------------

    def barrier(self, timeout: float | None = None) -> None:
        """Collective. Returns when every rank has called it, and every replica holds what was written and synchronised
        (``wait_sync``) before. Memory that was free since the last barrier goes back to the system.

        timeout: seconds; None waits as long as all ranks are alive.
        Raises CollectiveMismatchError, PeerLostError; WaitTimeoutError, after which the job cannot go on.
        """
        answers = self._collective("barrier", {}, {"replicas": self._engine.has_replicas()}, timeout)
        if any(answer["replicas"] for answer in answers):
            # All deltas are at the owners now, so all news are known. Once they are delivered, all copies agree.
            self._engine.flush_news()
            self._collective("barrier", {}, {}, timeout)
        self._engine.trim()

    def allgather(self, payload: bytes, timeout: float | None = None) -> list[bytes]:
        """Collective. Returns the payloads of all ranks, in rank order. For small things: rank 0 gathers all of them.

        Raises as ``barrier``.
        """
        answers = self._engine.exchange(b'{"call": "allgather"}\n' + payload, "allgather()", timeout)
        self._check_same_call("allgather", answers)
        return [answer.split(b"\n", 1)[1] for answer in answers]

    def _collective(
        self, call: str, arguments: dict[str, str], extra: dict[str, Any], timeout: float | None = None
    ) -> list[dict[str, Any]]:
        """Calls ``call`` together with all ranks, which must pass the same ``arguments``. Returns what all sent."""
        payload = json.dumps({"call": call, "arguments": arguments, **extra}).encode() + b"\n"
        described = f"{call}({', '.join(f'{key}={value}' for key, value in arguments.items())})"
        answers = self._engine.exchange(payload, described, timeout)
        self._check_same_call(call, answers)
        calls = [json.loads(answer) for answer in answers]
        for key, mine in arguments.items():
            for rank, other in enumerate(calls):
                if other["arguments"][key] != mine and not any(c.get("problem") for c in calls):
                    raise CollectiveMismatchError(
                        f"{call}: {key} is {mine} on rank {self.rank} but {other['arguments'][key]} on rank {rank}: "
                        "pass the same arguments on every rank"
                    )
        return calls

    def _check_same_call(self, call: str, answers: list[bytes]) -> None:
        for rank, answer in enumerate(answers):
            other = json.loads(answer.split(b"\n", 1)[0])["call"]
            if other != call:
                raise CollectiveMismatchError(
                    f"rank {self.rank} called {call}() while rank {rank} called {other}(): "
                    "every rank must make the same collective calls in the same order"
                )

    # -- seeing it -----------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Counters of this rank since start, of one moment. Any thread; waits for the engine's lock, some us. After
        ``close`` too. Raises ForkError in a forked child.

        To look at a period, subtract two snapshots. Keys, rows, rounds, records, messages are numbers of them.

        ``seconds``: since start. ``bytes_sent``, ``bytes_received``, ``messages_sent``, ``messages_received``: on the
            transport, headers included.
        ``bytes_by_kind[kind]``: ``sent`` and ``received``, headers and bodies without the transport's framing. Kinds:
            ``access_requests`` and ``replies`` (accesses to remote keys), ``rounds`` (what replica holders tell and
            ask owners), ``answers``, ``refreshes`` (with their acknowledgements) and ``control`` (all else).
        ``tables[name]``: keys accessed ``local`` (owned here), ``replica``, ``remote``; bytes of ``rows``, ``index``.
        ``served_keys``: keys of other ranks' accesses answered here. ``forwarded_keys``: of accesses passed on, as the
            key had moved; ``hops``: how often this rank's own keys were passed on. ``parked``: requests that had to
            wait here for a key on its way; ``parked_now``.
        ``relocations_in``, ``relocations_out``: keys that this rank became, or ceased to be, the owner of.
        ``replicas_set_up``, ``replicas_dropped``, ``replicas_promoted`` (became the main copy), ``replicas_held`` now.
        ``rounds`` begun, ``rounds_per_second`` over ``seconds``, their ``records`` (a key each), ``forwarded_records``.
        ``refreshed_rows``: rows sent to holders of replicas because others had changed them.
        ``staleness_ms``: how old the news are that refreshes bring, ``mean`` and ``max`` over acknowledged ``rows``.
            The age is from when this rank, the owner, learned of the oldest write of the message (its own worker's
            write, or the arrival of a holder's delta) to the holder's acknowledgement: an upper bound for its rows.
        ``intents``: keys ``signalled`` by the workers (duplicates counted), ``acted`` on; of these ``in_time`` (the
            key was here when its window started) or ``late`` (it was not; what is still to start is in neither);
            ``withdrawn``: over before the key was asked for; ``refused``: not asked for, because of the memory budget.
            Whether an intended key was accessed is not recorded.
        ``workers[i]``: ``clock``; ``clocks_per_round``, the action timer's estimate; ``horizon_clocks``, how many
            clocks ahead of their start intents are acted on.
        """
        if self._engine.is_forked():
            self._engine.check()
        return gather_stats(self._inspector, self._started_ns, list(self._tables.values()), list(self._workers))

    def count_local(self, table: Table, keys: npt.ArrayLike) -> int:
        """How many of ``keys`` (integers [K], duplicates counted) are on this rank now, owned or as a replica.

        Takes no lock and holds nobody up: cheap enough to poll. Any thread.
        Raises ShapeError, DtypeError, KeyRangeError, ClosedError.
        """
        self._engine.check()
        wanted = as_keys(keys)
        here: int = self._inspector.count_here(table, wanted)
        if here < 0:
            raise KeyRangeError(
                f"key {wanted[-1 - here]} is not in table {table.name!r}, whose keys are 0 to {table.num_keys - 1}"
            )
        return here

    def explain(self, table: Table, key: int, ask_owner: bool = False, timeout: float = 10.0) -> KeyReport:
        """What this rank knows of a key, why it last moved or was replicated, and who intends it; ``print`` it.

        ask_owner: asks the owner too, whose report (replicas, reasons) becomes ``at_owner``.
        timeout: seconds, per rank asked.
        Not collective; any thread. For people: it looks through all intents of this rank.
        Raises KeyRangeError, PeerLostError, WaitTimeoutError, ClosedError.
        """
        self._engine.check()
        if not 0 <= key < table.num_keys:
            raise KeyRangeError(f"key {key} is not in table {table.name!r}, whose keys are 0 to {table.num_keys - 1}")
        report = self._report_of(self.rank, table, key, timeout)
        if not ask_owner or report.state == "owned":
            return report
        with self._asking:
            at_owner = find_owner(report, lambda rank: self._report_of(rank, table, key, timeout))
        return replace(report, at_owner=at_owner)

    def _report_of(self, rank: int, table: Table, key: int, timeout: float) -> KeyReport:
        if rank == self.rank:
            return read_report(self._inspector.facts(table, key), table.name, key)
        return read_report(self._inspector.ask_facts(rank, table, key, timeout), table.name, key)

    def trace(self, table: Table, keys: npt.ArrayLike, events: int = 65536) -> None:
        """Records from now on what happens to ``keys`` here: intents, requests, relocations, replicas, refreshes.

        keys: integers [K]; several calls add up.
        events: how many this rank keeps, the newest; 24 bytes each. Of the first call since ``trace_stop`` or start.
        Not collective: call it on every rank whose view is wanted. Any thread.
        Raises KeyRangeError, Error, ClosedError; nothing has changed then.
        """
        self._engine.check()
        begin_trace(self._inspector, table, keys, events)

    def trace_stop(self) -> None:
        """Ends the recording; ``write_trace`` can still write it. Not collective; any thread."""
        self._inspector.end_trace()

    def write_trace(self, path: str | Path) -> None:
        """Collective. Rank 0 writes what all recorded to ``path``, as JSON for ui.perfetto.dev and ``intentpm plot``.

        The times of ranks on several hosts are aligned with the offsets of their clocks, measured here.
        Raises Error, on every rank, when nothing was traced or the file cannot be written (the message says where the
        trace was kept then); and as ``barrier``.
        """
        traces = gather_traces(self._inspector, self.allgather)
        problem = None
        if self.rank == 0:
            try:
                write_document(Path(path), traces, {table.table_id: name for name, table in self._tables.items()})
            except (Error, OSError) as error:
                problem = str(error)
        answers = self._collective("write_trace", {}, {"failed": problem})
        if answers[0]["failed"]:
            raise Error(f"write_trace({str(path)!r}): {answers[0]['failed']}")

    @property
    def transport_name(self) -> str:
        """Name of the transport in use."""
        return str(self._transport.name)

    # -- end -----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Collective end: settles this rank's writes and serves the other ranks until all have called it. Idempotent.

        Raises PeerLostError when a rank was lost before all had closed; everything is released all the same.
        """
        if self._closed:
            return
        if self._engine.is_forked():
            self._engine.check()
        self._closed = True
        try:
            self._engine.check()
            for worker in self._workers:
                worker.close()
            self._leave()
        except BaseException as problem:
            self._engine.fail(how_it_failed(problem))  # to those that do not know of it
            raise
        finally:
            self._release()

    def _leave(self) -> None:
        """Serves the others until all have left. A signal handler's ``sys.exit(0)`` meanwhile asks for just that."""
        orderly: SystemExit | None = None
        while True:
            try:
                self._engine.leave()
                break
            except SystemExit as problem:
                if why_failed(problem) is not None:
                    raise
                orderly = problem
        if orderly is not None:
            raise orderly

    def abort(self, why: str) -> None:
        """Ends this rank at once; every other rank raises PeerLostError with ``why``. Idempotent.

        why: goes on from "rank 3": "ran out of data".
        """
        if self._closed or self._engine.is_forked():
            return
        self._closed = True
        self._engine.fail(" ".join(str(why).split()))
        self._release()

    def _release(self) -> None:
        forget(self)
        with contextlib.ExitStack() as ending:  # every step, last to first, even if one of them is interrupted
            ending.callback(self._world.close)
            ending.callback(self._engine.close, CLOSE_FLUSH_S)
            if self._thread is not None:
                ending.callback(self._thread.join, CLOSE_FLUSH_S)
            ending.callback(self._engine.stop)

    def close_at_exit(self) -> None:
        """The program ends, in order, without close()."""
        if not self._engine.is_forked():
            self.close()

    def __enter__(self) -> "ParameterManager":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        why = why_failed(problem)
        if problem is not None and why is None and self._engine.has_failed():
            why = "left a job that had failed"  # which it has been told: its sys.exit(0) stands
        if why is None:
            self.close()
        else:
            self.abort(why)

    def __repr__(self) -> str:
        return f"<intentpm.ParameterManager rank {self.rank} of {self.size}, {self._transport.name}>"


def spin_times_us(asked: float | None, cores: int, local_ranks: int) -> tuple[float, float]:
    """How long a waiting worker and the progress thread poll before they sleep.

    Polling beats sleeping by 10 to 30 us per message, but on a machine with more threads than cores it takes the core
    from the thread that would send the message.
    """
    if asked is not None:
        return asked, asked
    if cores >= 2 * local_ranks:
        return 200.0, 50.0
    if cores >= local_ranks:
        return 60.0, 20.0
    return 5.0, 0.0


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _row_shape(row_shape: Any) -> tuple[int, ...]:
    shape = (row_shape,) if isinstance(row_shape, int | np.integer) else tuple(row_shape)
    if not all(isinstance(length, int | np.integer) and length > 0 for length in shape):
        raise ShapeError(f"row_shape={row_shape!r}: needs positive lengths")
    return tuple(int(length) for length in shape)
