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
from typing import Any, NoReturn, get_args, overload

import numpy.typing as npt

from intentpm.foundation.errors import DtypeError, Error, KeyRangeError, RankLost, WaitTimeoutError
from intentpm.foundation.handles import refuse_to_cross
from intentpm.foundation.losses import how_it_failed
from intentpm.runtime._native.engine import Engine
from intentpm.runtime._native.inspection import Inspector
from intentpm.runtime._native.rank_memory import RankMemory
from intentpm.runtime._native.store import Table
from intentpm.runtime.arguments import as_keys, whole_number
from intentpm.runtime.array_types import Keys, Weights
from intentpm.runtime.checkpointing import Checkpointing
from intentpm.runtime.collectives import Call, Collectives
from intentpm.runtime.config import Config, Management, Storage
from intentpm.runtime.device_worker import DeviceWorker
from intentpm.runtime.devices import Devices
from intentpm.runtime.ending import forget, watch, why_failed
from intentpm.runtime.exact_clocks import ExactClocks
from intentpm.runtime.explain import KeyReport, read_report
from intentpm.runtime.explain import ask_owner as find_owner
from intentpm.runtime.going_on import GoingOn
from intentpm.runtime.initial_rows import Init
from intentpm.runtime.optimisers import RowOptimiser
from intentpm.runtime.sampling import POOL_SIZE, POOL_USES, DistributionName, Sampling, Scheme
from intentpm.runtime.samplings import Samplings
from intentpm.runtime.saving import Saves
from intentpm.runtime.stats import gather_stats
from intentpm.runtime.table_arguments import TableArguments, check_name, check_table_arguments, describe_unchecked
from intentpm.runtime.table_creation import TableCreation
from intentpm.runtime.trace import begin_trace, gather_traces, write_document
from intentpm.runtime.trace_file import RankTrace
from intentpm.runtime.types import World
from intentpm.runtime.worker import Worker
from intentpm.runtime.workers_of_rank import WorkersOfRank
from intentpm.transports.base import Transport

CLOSE_FLUSH_S = 5.0


class ParameterManager(Checkpointing):
    """One rank of a job: its tables, workers and connections. Made by ``intentpm.init()``; use it in a with block.

    Collective calls (``create_table``, ``barrier``, ``allgather``, ``write_trace``, ``close``) must be made by every
    rank in the same order, by one thread at a time.
    Attributes: ``rank``, from 0 on, of ``size`` ranks; ``config``, the options in force (``runtime.config.Config``).
    """

    def __init__(self, config: Config, world: World, transport: Transport) -> None:
        """transport: connected to all ranks of ``world``. Takes ownership of both."""
        self.config = config
        self.rank: int = world.rank
        self.size: int = world.size
        self._world = world
        self._transport = transport
        self._tables: dict[str, Table] = {}
        self._workers = WorkersOfRank()
        self._worker_ids = itertools.count()
        self._samplings = Samplings()
        self._closed = False
        self._devices = Devices(config.device, world)
        continues = config.on_loss == "continue" and world.size > 1
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
            continues,
        )
        self._memory = RankMemory(self._engine)
        self.going_on: GoingOn | None = None
        self._collectives = Collectives(self._engine, self.rank, lambda: self.going_on)
        self.exact_clocks = (
            ExactClocks(
                self._collectives,
                self.rank,
                self.size,
                config.clock_timeout,
                lambda: list(self._tables.values()),
                self._bring_up_to_date,
            )
            if config.sync == "exact"
            else None
        )
        self._inspector = Inspector(self._engine)
        self._saves = Saves(self._engine, self._workers, self._memory, self.rank, config.seed)
        self._told = {}
        self._started_ns: int = self._inspector.now_ns()
        self._asking = threading.Lock()
        if continues:
            self.going_on = GoingOn(
                self._engine, self._workers, self._saves, self._forget_told, transport, config.peer_timeout
            )
        self._thread: threading.Thread | None = None
        try:
            if world.size > 1:
                self._start_thread()
            if self.going_on is not None and not transport.virtual_time:
                self.going_on.start()
            watch(self)
        except BaseException:  # the thread must be gone before the transport is
            self._release(flush_s=0.0)
            raise

    def _start_thread(self) -> None:
        if self._thread is None and not self._transport.virtual_time:
            self._thread = threading.Thread(target=self._engine.run, name="intentpm-progress", daemon=True)
            self._thread.start()

    # -- tables and workers --------------------------------------------------------------------------------------------

    def create_table(
        self,
        name: str,
        num_keys: int,
        row_shape: int | tuple[int, ...] = (),
        dtype: npt.DTypeLike = "float32",
        init: Init = 0.0,
        optimizer: RowOptimiser | None = None,
        timeout: float | None = None,
        *,
        storage: Storage | None = None,
        device_memory: int | str | None = None,
    ) -> Table:
        """Collective. Makes a table of ``num_keys`` rows, spread over the ranks.

        Parameters
            name: of printable characters, at most 255 bytes.
            num_keys: 1 to 2^31 - 1; keys are 0 to num_keys - 1.
            row_shape: shape of one row; () for one number.
            dtype: float32, float64, float16, bfloat16 (needs ml_dtypes), int32 or int64; NumPy's and torch's names too.
            init: a number; rows [num_keys, *row_shape], of all ranks together, or one row [*row_shape]: an array,
                memory map, torch tensor in host memory or nested list; or a callable that is given int64 keys [K] and
                returns their rows [K, *row_shape]. Each rank evaluates it, or reads it, for the keys it starts with.
                Floats may be rounded to floats; any other change of a value is refused.
            optimizer: of ``intentpm.optim``; then ``worker.push_grad`` takes gradients, and each row has the state of
                the optimizer with it. For floating-point dtypes.
            timeout: seconds; None waits as long as all ranks are alive.
            storage: where this rank has its rows: "host"; "gpu": in the memory of the device that
                ``init(device=...)`` names; "tiered": on the host, and of those that intents need soon a copy on the
                device. Default: ``init(storage=...)``, the host. Ranks may differ. See docs/gpu.md.
            device_memory: with storage="tiered", bytes on the device for rows of this table, a number or a text as
                "8GiB". Default: ``init(device_memory=...)``, half of what is free there. Ranks may differ.
        Raises, at once and on this rank alone: DtypeError, Error for a name that is none.
        Raises, on every rank, and no rank has the table then: ShapeError, DtypeError for arguments that cannot be used,
        the same whichever rank found it; OptimizerError, Error, MemoryBudgetError, what a callable raised (the other
        ranks: Error naming the rank); CollectiveMismatchError when the ranks' arguments differ; PeerLostError.
        WaitTimeoutError: as ``barrier``. Any other exception that ends the wait, Ctrl-C say, undoes the call here, and
        the other ranks raise Error naming this one; if they had all come by then, the table is made, and this rank gets
        it by the same call again.
        """
        check_name(name)
        arguments, problem = check_table_arguments(
            name,
            num_keys,
            row_shape,
            dtype,
            init,
            optimizer,
            storage or self.config.storage,
            device_memory,
            self.config.device_memory,
        )
        described = (
            arguments.describe()
            if arguments
            else describe_unchecked(
                name=name, num_keys=num_keys, row_shape=row_shape, dtype=dtype, init=init, optimizer=optimizer
            )
        )
        what, identity = f"create_table({described['name']})", json.dumps(described).encode()
        with self._collectives.call("create_table", what, identity, timeout) as call:
            creation = TableCreation(self._engine, described["name"])
            try:
                creation = call.once(
                    lambda: creation.make(
                        arguments, problem, self._check_new, self.rank, self.size, self._devices, self._memory
                    )
                )
                call.undo = creation.undo
                answers = call.agree(described, problem=creation.problem, peer_bytes=self._memory.peer_bytes())
                for answer in answers:
                    if answer.get("peer_bytes"):  # who gave up says nothing
                        self._memory.narrow(answer["peer_bytes"])
                self._settle_table(creation, not any(answer["problem"] for answer in answers))
            except WaitTimeoutError:
                raise
            except Error:
                creation.undo()
                raise
            except BaseException as interrupt:
                call.withdraw(lambda made: self._settle_table(creation, made), creation.given_up(interrupt))
                raise
        return creation.result(answers, call.ranks)

    def _check_new(self, arguments: TableArguments) -> int:
        """The id of a table that can be made. Raises Error, ConfigError."""
        if arguments.name in self._tables:
            raise Error(f"table {arguments.name!r} exists already: choose another name")
        if self.going_on is not None:
            self.going_on.check_table(arguments)
        return len(self._tables)

    def _settle_table(self, creation: TableCreation, made: bool) -> None:
        """All ranks have come: the table is made, or was not to be."""
        table = creation.table
        if table is None or not made:
            creation.undo()
        elif table.name not in self._tables:
            self._engine.replicate_all(table)
            self._tables[table.name] = table
            if table.tier is not None and table.tier.is_fetching:
                self._start_thread()  # a rank alone needs none but to bring rows over

    @overload
    def worker(self, device: None = None) -> Worker: ...
    @overload
    def worker(self, device: str) -> DeviceWorker: ...
    def worker(self, device: str | None = None) -> Worker:
        """A new worker for the calling thread; its clock starts at 0. Not collective.

        Its intents hold as long as it is open: until ``close``, or the end of the last reference to it.

        device: "cuda" (this rank's, as of ``init(device=...)``), "cuda:1", or "emulated": keys and rows of its calls
            lie there (``DeviceWorker``, docs/gpu.md). None: on the host. Workers of one rank may be of several devices:
            make all of them before the first is used.
        Raises ConfigError, DeviceError.
        """
        self._engine.check()
        if device is None:
            return Worker(self, self._engine, self._workers, next(self._worker_ids))
        opened = self._devices.open(device)
        return DeviceWorker(self, self._engine, self._workers, next(self._worker_ids), opened)

    def create_sampling(
        self,
        table: Table,
        distribution: DistributionName | Weights = "uniform",
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
                pulled, among the keys that this rank owns (with the target's probabilities conditional on these), and
                keeps them here until the worker's clock advances. It departs from the distribution:
                ``sampling.stats()`` says how far. Where a rank owns few keys, it draws as naive does.
            replacement: False: the keys of one sample are distinct, each drawn from those not drawn before it.
            seed: default: that of the job (``init(seed=...)``). Ranks and workers have different streams in any case;
                so has a job after ``load``, for each checkpoint.
        Raises SampleError, DtypeError.
        """
        self._check_own(table)
        chosen = self.config.seed if seed is None else seed
        sampling = Sampling(
            table, distribution, scheme, replacement, pool_size, pool_uses, chosen, rank=self.rank, size=self.size
        )
        return self._samplings.declare(sampling)

    def sampling(self, table: Table) -> Sampling:
        """The sampling last declared for ``table``; declares one with the defaults if there is none."""
        self._check_own(table)
        found = self._samplings.last(table)
        return self.create_sampling(table) if found is None else found

    def _check_own(self, table: Table) -> None:
        """Raises what keeps this manager from working, and Error for a table that it does not have."""
        self._engine.check()
        if not isinstance(table, Table):
            raise DtypeError(f"table={table!r}: needs a table of create_table, not {type(table).__name__}")
        if self._tables.get(table.name) is not table:
            raise Error(f"{table!r} belongs to another parameter manager")

    # -- collectives ---------------------------------------------------------------------------------------------------

    def barrier(self, timeout: float | None = None) -> None:
        """Collective. Returns when every rank has called it, and every replica holds what was written and synchronised
        (``wait_sync``) before. Memory that was free since the last barrier goes back to the system.

        timeout: seconds; None waits as long as all ranks are alive.
        Raises CollectiveMismatchError, PeerLostError; WaitTimeoutError naming the ranks that have not come. This rank
        has come all the same, for the others need not wait for it: call it again, on this rank, to wait on. Any other
        collective call raises CollectiveMismatchError until then.
        """
        with self._collectives.call("barrier", "barrier()", b"", timeout) as call:
            self._bring_up_to_date(call)
        self._engine.trim()

    def _bring_up_to_date(self, call: Call) -> None:
        """All copies, of what was synchronised before all ranks had come here."""
        answers = call.agree({}, replicas=self._engine.may_hold_replicas())
        if any(answer["replicas"] for answer in answers):
            # All deltas are at the owners now, so all news are known. Once they are delivered, all copies agree.
            call.deliver_news()
        elif self._engine.may_hold_replicas():
            # They came after this rank had said that it had none, when the others may have gone on already.
            call.alone(lambda: self._engine.refresh_replicas(call.remaining_s()))

    def check(self) -> None:
        """For loops that wait for ranks by other ways. Raises what has ended the job for this rank, if something has:
        PeerLostError, ClosedError. Any thread; waits for nothing.
        """
        self._engine.check()

    def allgather(self, payload: bytes, timeout: float | None = None) -> list[bytes]:
        """Collective. Returns the payloads of all ranks, in rank order. For small things: rank 0 gathers all of them.

        Raises as ``barrier``; after WaitTimeoutError it is the same call with the same payload.
        """
        with self._collectives.call("allgather", "allgather()", payload, timeout) as call:
            return call.gather(payload)

    # -- ranks that are lost -------------------------------------------------------------------------------------------

    @property
    def living(self) -> list[int]:
        """The ranks that are in the job, ascending: all, but those that were lost with ``init(on_loss="continue")``."""
        return self._engine.living()

    def _forget_told(self, answered: bool) -> None:
        """Rows may be older than those that were told. answered: what this rank has given up, the others have made."""
        self._told.clear()
        self._collectives.forget(answered)

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
        ``tables[name]``: keys accessed ``local`` (owned here), ``replica``, ``remote``; bytes of ``rows``, ``index``,
            and ``taken``, as ``memory_budget`` counts them.
            Of ``sampled`` accesses (one in 251) it was looked whether an intent of this rank for the key was in force:
            ``announced``, and ``in_time`` if the key was here too.
        ``coverage``: the shares that are ``announced`` and ``in_time`` of the accesses ``sampled`` in all tables; None
            before any, and where intents are not acted on (one rank, management without intents).
        ``served_keys``: keys of other ranks' accesses answered here. ``forwarded_keys``: of accesses passed on, as the
            key had moved; ``hops``: how often this rank's own keys were passed on. ``parked``: requests that had to
            wait here for a key on its way; ``parked_now``.
        ``relocations_in``, ``relocations_out``: keys that this rank became, or ceased to be, the owner of.
        ``replicas_set_up`` (of these ``replicas_fetched`` for one clock), ``replicas_dropped``, ``replicas_promoted``
            (became the main copy), ``replicas_held`` now.
        ``rounds`` begun, ``rounds_per_second`` over ``seconds``, their ``records`` (a key each), ``forwarded_records``.
        ``refreshed_rows``: rows sent to holders of replicas because others had changed them.
        ``staleness_ms``: how old the news are that refreshes bring, ``mean`` and ``max`` over acknowledged ``rows``.
            The age is from when this rank, the owner, learned of the oldest write of the message (its own worker's
            write, or the arrival of a holder's delta) to the holder's acknowledgement: an upper bound for its rows.
        ``age_at_read``: of the pulls from replicas among the ``sampled`` accesses, how old what they read was: per
            unit (``ms``, ``clocks`` of the worker) the reads by the least of the bounds 1, 2, 4, ... inf that is more.
            The age counts from when the row was last known to be the owner's: an upper bound.
        ``intents``: keys ``signalled`` by the workers (duplicates counted), ``acted`` on; of these ``in_time`` (the
            key was here when its window started) or ``late`` (it was not; what is still to start is in neither);
            ``withdrawn``: over before the key was asked for; ``refused``: not asked for, because of the memory budget.
            Whether an intended key was accessed is not recorded.
        ``workers[i]``, of those that are open: ``clock``; ``clocks_per_round``, the action timer's estimate;
        ``horizon_clocks``, how many
            clocks ahead of their start intents are acted on.
        """
        if self._engine.is_forked():
            self._engine.check()
        return gather_stats(self._inspector, self._started_ns, list(self._tables.values()), self._workers)

    def count_local(self, table: Table, keys: Keys) -> int:
        """How many of ``keys`` (integers [K], duplicates counted) are on this rank now, owned or as a replica.

        Takes no lock and holds nobody up: cheap enough to poll. Any thread.
        Raises ShapeError, DtypeError, KeyRangeError, ClosedError.
        """
        self._check_own(table)
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
        self._check_own(table)
        key = whole_number(key, "key")
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

    def trace(self, table: Table, keys: Keys, events: int = 65536) -> None:
        """Records from now on what happens to ``keys`` here: intents, requests, relocations, replicas, refreshes.

        keys: integers [K]; several calls add up.
        events: how many this rank keeps, the newest; 24 bytes each. Of the first call since ``trace_stop`` or start.
        Not collective: call it on every rank whose view is wanted. Any thread.
        Raises KeyRangeError, Error, ClosedError; nothing has changed then.
        """
        self._check_own(table)
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
        with self._collectives.call("write_trace", "write_trace()", str(path).encode()) as call:
            traces = gather_traces(lambda: call.once(self._inspector.now_ns), self._inspector.trace, call.gather)
            problem = call.once(lambda: self._write_traces(Path(path), traces))
            failed = call.agree({}, failed=problem)[0]["failed"]
        if failed:
            raise Error(f"write_trace({str(path)!r}): {failed}")

    def _write_traces(self, path: Path, traces: list[RankTrace]) -> str | None:
        """On rank 0. Returns what went wrong."""
        if self._saves.is_first():
            try:
                write_document(path, traces, {table.table_id: name for name, table in self._tables.items()})
            except (Error, OSError) as error:
                return str(error)
        return None

    @property
    def transport_name(self) -> str:
        """Name of the transport in use."""
        return str(self._transport.name)

    # -- end -----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Collective end: settles this rank's writes and serves the other ranks until all have called it. Idempotent.

        Raises PeerLostError when a rank was lost before all had closed; everything is released all the same. With
        ``on_loss="continue"`` the others end in order then, and raise SaveInterruptedError at the end where that made a
        save come to nothing of which nobody was told.
        """
        if self._closed:
            return
        if self._engine.is_forked():
            self._engine.check()
        self._closed = True
        try:
            self._engine.check()
            interrupted = self._saves.end()
            self._workers.settle()
            if self.exact_clocks is not None:
                self.exact_clocks.close(self.worker)
            self._leave()
        except BaseException as problem:
            self._engine.fail(how_it_failed(problem))  # to those that do not know of it
            raise
        finally:
            self._release()
        if interrupted is not None:
            raise interrupted

    def _leave(self) -> None:
        """Serves the others until all have left. A signal handler's ``sys.exit(0)`` meanwhile asks for just that."""
        orderly: SystemExit | None = None
        while True:
            try:
                if self._engine.leave():
                    break
            except SystemExit as problem:
                if why_failed(problem) is not None:
                    raise
                orderly = problem
            except RankLost:
                continue  # the others are waited for
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

    def _release(self, flush_s: float = CLOSE_FLUSH_S) -> None:
        forget(self)
        with contextlib.ExitStack() as ending:  # every step, last to first, even if one of them is interrupted
            ending.callback(self._world.close)
            ending.callback(self._engine.close, flush_s)
            ending.callback(self._saves.join, CLOSE_FLUSH_S)
            if self.going_on is not None:
                ending.callback(self.going_on.close, CLOSE_FLUSH_S)
            if self._thread is not None and self._thread.is_alive():
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

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_to_cross(
            self, "pass what is needed to compute keys, and make accesses here; or start that process as a rank"
        )

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
