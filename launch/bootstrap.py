"""``intentpm.init``: from an environment variable or two to connected ranks.

Every step below ends in an exchange in which each rank says whether it succeeded, so that a failure anywhere is an
error everywhere at once, and not a deadline somewhere else.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intentpm.foundation.errors import ConfigError, Error, TransportError, TransportUnavailableError
from intentpm.launch.agreement import (
    Greeting,
    check_same_on_loss,
    check_versions,
    left_out,
    name_ranks,
    usable_transports,
)
from intentpm.launch.world import find_world
from intentpm.runtime.config import Config, Management, OnLoss, Storage, Synchronisation, Timing, read_config
from intentpm.runtime.types import World

if TYPE_CHECKING:
    from intentpm.runtime.manager import ParameterManager
    from intentpm.transports.ucx_memory import UcxPlan

PROTOCOL_VERSION = 6
"""Of the start-up and of the messages between ranks; raised when ranks of two builds could not work together."""
SHOWN_REASONS = 3
"""Of a failure that every rank describes in its own way."""
VERDICT_MARGIN_S = 2.0
"""How long after the deadline of a step its outcome is still waited for."""


def init(
    transport: str = "auto",
    *,
    management: Management | None = None,
    timing: Timing | None = None,
    sync: Synchronisation | None = None,
    on_loss: OnLoss | None = None,
    clock_timeout: float | None = None,
    peer_timeout: float | None = None,
    start_timeout: float | None = None,
    sync_interval: float | None = None,
    sync_threshold: float | None = None,
    secret: str | None = None,
    spin_us: float | None = None,
    memory_budget: int | str | None = None,
    seed: int | None = None,
    storage: Storage | None = None,
    device: str | None = None,
    device_memory: int | str | None = None,
    host: str | None = None,
    port: int | None = None,
) -> "ParameterManager":
    """Joins this process to its job and returns its parameter manager; use it in a ``with`` statement.

    Finds its peers by itself, whether started by ``intentpm run``, ``mpirun``, ``srun`` or ``torchrun``. A process that
    none of these started is a job of one rank, with no network. A child of a rank is none: see ``clean_environment``.

    Parameters
    ----------
    None needs setting. An argument left out is taken from the variable ``INTENTPM_<NAME>``, then from its default.

    transport: "auto" (ucx where every rank can use it, else tcp), "ucx" or "tcp".
    management: "adaptive", or for experiments "adapm", "relocate", "replicate", "static" or "full_replication".
    timing: when intents are acted on: "adaptive" or "immediate".
    sync: "async", or "exact": the gradients of all ranks make one step per clock, with the bits of one rank.
    on_loss: "stop": when a rank is lost the job ends, every other rank raises PeerLostError. "continue": the others go
        on without it, and raise RankLost once in each worker (docs/membership.md); over tcp, with sync="async" and
        storage="host". Ranks must not differ.
    clock_timeout: with sync="exact", seconds for which a rank waits at the end of a clock for the others; 300.
    peer_timeout: seconds without a sign of life after which a rank that is waited for counts as lost; 10.
    start_timeout: seconds for all ranks to appear and connect; 120.
    sync_interval: seconds for which writes to replicated keys are gathered before they are sent on; 0.001.
    sync_threshold: L2 norm that a replica's gathered writes must reach to be sent (a wait_sync sends all); 0.
    secret: shared by the ranks of the job, at least 16 characters; made by the launcher.
    spin_us: microseconds a waiting thread polls before it sleeps; from the cores per rank.
    memory_budget: bytes this rank may use for tables, copies, messages and saves, a number or a text as "8GiB"; what
        the machine has.
    seed: of everything random; from the operating system.
    storage: of tables whose ``create_table`` names none: "host", "gpu" or "tiered"; "host".
    device: of tables with storage="gpu" or "tiered": "cuda" (one for each rank of a host in turn), "cuda:1", or
        "emulated"; "cuda".
    device_memory: bytes on the device for rows of each table with storage="tiered", a number or a text as "8GiB";
        half of what is free there.
    host, port: address (or interface name) and port the tcp transport listens on; found and free ones.

    Returns
    -------
    The ParameterManager of this rank.

    Raises
    ------
    ConfigError: an option or variable cannot be used, a package the launcher needs is missing, or this process has
        inherited the variables of another that is a rank (a child of it, a worker of a pool).
    WaitTimeoutError: not all ranks came within ``start_timeout``; names those missing.
    PeerLostError: a rank died before all were connected.
    VersionMismatchError: the ranks run different versions of intentpm.
    TransportUnavailableError: the transport asked for does not work on some rank; says why.
    TransportError: a rank could not listen or connect; says what was tried.
    Whatever is raised, nothing is left open, and ``init`` may be called again where every rank got the error.

    Threads
    -------
    Collective: every rank calls it, from one thread. Waits for the other ranks with the GIL released.
    """
    options = dict(locals())
    # "auto" is no choice: INTENTPM_TRANSPORT, and so `intentpm run --transport`, may make it.
    options["transport"] = None if transport == "auto" else transport
    config = read_config(options)
    return join(config, find_world(config))


def join(config: Config, world: World) -> "ParameterManager":
    """Connects this rank to the others of ``world``; the parameter manager owns the world then. As ``init``."""
    from intentpm.launch.variables import warn_of_unknown_variables
    from intentpm.runtime.manager import ParameterManager

    try:
        if world.rank == 0:
            warn_of_unknown_variables(os.environ)
        connected = start_transport(config, world)
        try:
            return ParameterManager(config, world, connected)
        except BaseException:
            connected.close(0.0)
            raise
    except BaseException:
        world.close()
        raise


def start_transport(config: Config, world: World) -> Any:
    """A connected transport for ``world``: loopback for one rank, else the one all ranks agree on. Collective.

    Raises what ``init`` raises, on every rank, and leaves nothing open.
    """
    from intentpm.transports import registry

    if config.transport not in ("auto", *registry.names()):
        raise ConfigError(f"transport={config.transport!r}: choose auto, {', '.join(registry.names())}")
    if world.size == 1:
        from intentpm.transports.loopback import LoopbackNetwork

        return LoopbackNetwork(1).transport(0)
    deadline = time.monotonic() + config.start_timeout
    plans: dict[str, UcxPlan] = {}  # made before any rank of this host opens anything
    said = _together(world, lambda: _greet(config, world, plans).pack(), "start", deadline)
    greetings = [Greeting.unpack(data, rank) for rank, data in enumerate(said)]
    check_versions(greetings)
    check_same_on_loss(greetings)
    names, passed_over = usable_transports(greetings)
    for name in names:
        is_last = name == names[-1]
        attempt = _Attempt(name, config, world, plans.get(name))
        # What may be replaced leaves half of the time to what replaces it.
        outcome = attempt.run(deadline if is_last else deadline - _remaining_s(deadline) / 2)
        if not outcome.failures:
            if world.rank == 0:
                _say_what_is_used(name, passed_over, left_out(greetings, name))
            return attempt.transport
        if is_last:
            outcome.raise_failure(attempt.step)
        passed_over.append(f"it cannot {attempt.step}: {outcome.failures}")
    raise AssertionError("usable_transports() returns at least one")


def _greet(config: Config, world: World, plans: "dict[str, UcxPlan]") -> Greeting:
    from importlib.metadata import version

    # Over ucx a rank that is killed may stop another for good (docs/ucx.md): the others could not go on.
    wish = "tcp" if config.on_loss == "continue" and config.transport == "auto" else config.transport
    transports = survey_transports(wish, world.local_ranks, plans)
    notes = {name: plan.note for name, plan in plans.items()}
    return Greeting(version("intentpm"), PROTOCOL_VERSION, wish, transports, notes, config.on_loss)


def survey_transports(
    wish: str = "auto", local_ranks: int = 1, plans: "dict[str, UcxPlan] | None" = None
) -> dict[str, str]:
    """Transports between processes, in order of preference -> why they cannot be used here ("" if they can).

    Only ``wish`` unless it is "auto": looking at a transport imports the libraries it needs. ``plans`` is filled with
    how to open them for ``local_ranks`` ranks on this host.
    """
    from intentpm.transports import registry

    names = [name for name in registry.names() if name != "loopback"] if wish == "auto" else [wish]
    return {name: _why_not(name, local_ranks, {} if plans is None else plans) for name in names}


def _why_not(name: str, local_ranks: int, plans: "dict[str, UcxPlan]") -> str:
    from intentpm.transports import registry

    if name == "loopback":
        return "it connects ranks within one process"
    try:
        registry.load(name)
        if name == "ucx":
            from intentpm.launch.ucx_trial import risky_settings, why_trial_failed
            from intentpm.transports.ucx_memory import plan_ucx

            plans[name] = plan_ucx(local_ranks)
            return why_trial_failed() if risky_settings() else ""
    except TransportUnavailableError as error:
        return str(error)
    return ""


class _Attempt:
    """To open and connect one transport on all ranks together. ``transport`` is closed again where that failed."""

    def __init__(self, name: str, config: Config, world: World, plan: "UcxPlan | None") -> None:
        self.name, self.config, self.world, self.plan = name, config, world, plan
        self.transport: Any = None
        self.step = ""
        """What was done last, for errors."""

    def run(self, deadline: float) -> "_Outcome":
        """Collective. Its failures are known to every rank; raises where not even that worked."""
        try:
            self.step = f"open the {self.name} transport"
            outcome = _try_together(self.world, self._open, deadline)
            if not outcome.failures:
                self.step, addresses = f"connect over {self.name}", outcome.answers
                outcome = _try_together(self.world, lambda: self._connect(addresses, deadline), deadline)
        except BaseException:
            self._close()
            raise
        if outcome.failures:
            self._close()
        return outcome

    def _open(self) -> bytes:
        self.transport = _make(self.name, self.config, self.world, self.plan)
        return bytes(self.transport.address())

    def _connect(self, addresses: list[bytes], deadline: float) -> bytes:
        self.transport.connect(addresses, _remaining_s(deadline))
        return b""

    def _close(self) -> None:
        if self.transport is not None:
            self.transport.close(0.0)


def _make(name: str, config: Config, world: World, plan: "UcxPlan | None") -> Any:
    from intentpm.transports import registry

    options: dict[str, Any] = {"host": config.host, "port": config.port} if name == "tcp" else {}
    if plan is not None:
        options["options"] = plan.options
    return registry.load(name)(world.rank, world.size, world.secret, peer_timeout_s=config.peer_timeout, **options)


def _say_what_is_used(name: str, passed_over: list[str], parts: str) -> None:
    if passed_over:
        print(f"intentpm: using the {name} transport, because {'; '.join(passed_over)}", file=sys.stderr)
    if parts:
        print(f"intentpm: using the {name} transport with less ({parts})", file=sys.stderr)


@dataclass(frozen=True)
class _Outcome:
    """Of a step that all ranks made."""

    answers: list[bytes]
    failures: str
    """Which ranks failed and why; "" when none did."""
    own_error: Exception | None

    def raise_failure(self, what: str) -> None:
        if self.own_error is not None:
            raise self.own_error
        if self.failures:
            raise TransportError(f"cannot {what}: {self.failures}")


def _together(world: World, step: Callable[[], bytes], what: str, deadline: float) -> list[bytes]:
    """Runs ``step`` on every rank and returns what each got; raises on every rank if it failed on any."""
    outcome = _try_together(world, step, deadline)
    outcome.raise_failure(what)
    return outcome.answers


def _try_together(world: World, step: Callable[[], bytes], deadline: float) -> _Outcome:
    error: Exception | None = None
    try:
        answer = b"+" + step()
    except Exception as caught:
        error = caught
        answer = f"-{type(error).__name__}: {error}".encode()
    try:
        # The others may still be in their step, until its deadline: what they found is worth a little longer.
        said = world.allgather(answer, _remaining_s(deadline) + VERDICT_MARGIN_S)
    except Error:
        if error is not None:
            raise error from None
        raise
    failed: dict[str, list[int]] = {}
    for rank, data in enumerate(said):
        if data[:1] != b"+":
            failed.setdefault(data[1:].decode(), []).append(rank)
    shown = [f"{name_ranks(ranks)}: {reason}" for reason, ranks in list(failed.items())[:SHOWN_REASONS]]
    others = [rank for ranks in list(failed.values())[SHOWN_REASONS:] for rank in ranks]
    failures = "; ".join([*shown, f"and {name_ranks(others)} likewise"] if others else shown)
    return _Outcome([data[1:] for data in said], failures, error)


def _remaining_s(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
