"""``intentpm.init``: from an environment variable or two to connected ranks.

Every step below ends in an exchange in which each rank says whether it succeeded, so that a failure anywhere is an
error everywhere at once, and not a deadline somewhere else.
"""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from intentpm.launch.agreement import Greeting, agree_on_transport, check_versions
from intentpm.launch.world import find_world
from intentpm.runtime.config import Config, Management, Timing, read_config
from intentpm.runtime.errors import TransportError
from intentpm.runtime.types import World

if TYPE_CHECKING:
    from intentpm.runtime.manager import ParameterManager

PROTOCOL_VERSION = 1
"""Of the messages between ranks; raised whenever ranks of two builds could not work together."""
VERDICT_MARGIN_S = 2.0


def init(
    transport: str = "auto",
    *,
    management: Management | None = None,
    timing: Timing | None = None,
    peer_timeout: float | None = None,
    start_timeout: float | None = None,
    secret: str | None = None,
    spin_us: float | None = None,
    memory_budget: int | None = None,
    seed: int | None = None,
    host: str | None = None,
    port: int | None = None,
) -> "ParameterManager":
    """Joins this process to its job and returns its parameter manager; use it in a ``with`` statement.

    Finds its peers by itself, whether started by ``intentpm run``, ``mpirun``, ``srun`` or ``torchrun``. A process that
    none of these started is a job of one rank, with no network.

    Parameters
    ----------
    None needs setting. An argument left out is taken from the variable ``INTENTPM_<NAME>``, then from its default.

    transport: "auto" (ucx where every rank can use it, else tcp), "ucx" or "tcp".
    management: "adaptive", or for experiments "relocate", "replicate", "static" or "full_replication".
    timing: when intents are acted on: "adaptive" or "immediate".
    peer_timeout: seconds without a sign of life after which a rank that is waited for counts as lost; 10.
    start_timeout: seconds for all ranks to appear and connect; 120.
    secret: shared by the ranks of the job, at least 16 characters; made by the launcher.
    spin_us: microseconds a waiting thread polls before it sleeps; from the cores per rank.
    memory_budget: bytes of row memory this rank may use; what the machine has.
    seed: of everything random; from the operating system.
    host, port: address (or interface name) and port the tcp transport listens on; found and free ones.

    Returns
    -------
    The ParameterManager of this rank.

    Raises
    ------
    ConfigError: an option or variable cannot be used, or a package the launcher needs is missing.
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
    from intentpm.runtime.manager import ParameterManager

    world = find_world(config)
    try:
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

    if world.size == 1:
        return registry.make("loopback", config, world)
    deadline = time.monotonic() + config.start_timeout
    greetings = [
        Greeting.unpack(data, rank)
        for rank, data in enumerate(_together(world, lambda: _greet(config), "start", deadline))
    ]
    check_versions(greetings)
    name, passed_over = agree_on_transport(greetings)
    if passed_over and world.rank == 0:
        print(f"intentpm: using the {name} transport; {passed_over}", file=sys.stderr)
    return _connect(lambda: registry.make(name, config, world), world, f"connect over {name}", deadline)


def _greet(config: Config) -> bytes:
    from intentpm import __version__
    from intentpm.transports import registry

    return Greeting(__version__, PROTOCOL_VERSION, config.transport, registry.survey()).pack()


def _connect(make: Callable[[], Any], world: World, what: str, deadline: float) -> Any:
    transport: Any = None

    def listen() -> bytes:
        nonlocal transport
        transport = make()
        return bytes(transport.address())

    try:
        addresses = _together(world, listen, what, deadline)
        _together(world, lambda: transport.connect(addresses, _remaining_s(deadline)) or b"", what, deadline)
    except BaseException:
        if transport is not None:
            transport.close(0.0)
        raise
    return transport


def _together(world: World, step: Callable[[], bytes], what: str, deadline: float) -> list[bytes]:
    """Runs ``step`` on every rank and returns what each got; raises on every rank if it failed on any."""
    try:
        answer, failure = b"+" + step(), None
    except Exception as error:
        answer, failure = f"-{type(error).__name__}: {error}".encode(), error
    try:
        # The others may still be in their step, until its deadline: what they found is worth a little longer.
        answers = world.allgather(answer, _remaining_s(deadline) + VERDICT_MARGIN_S)
    finally:
        if failure is not None:
            raise failure
    failed = [f"rank {rank}: {said[1:].decode()}" for rank, said in enumerate(answers) if said[:1] == b"-"]
    if failed:
        raise TransportError(f"cannot {what}: {'; '.join(failed)}")
    return [said[1:] for said in answers]


def _remaining_s(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
