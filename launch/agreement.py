"""What the ranks tell each other before they connect: version, protocol, and which transport all of them can use.

Pure: every rank gets the same greetings and comes to the same conclusion, or raises the same error.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from intentpm.foundation.errors import ConfigError, TransportError, TransportUnavailableError, VersionMismatchError


@dataclass(frozen=True)
class Greeting:
    """One rank's part."""

    version: str
    protocol: int
    wish: str
    """The transport this rank was told to use, or "auto"."""
    transports: Mapping[str, str]
    """In order of preference: transport -> why it cannot be used here ("" if it can)."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Transport -> what it will leave out here, and why ("": nothing)."""
    on_loss: str = "stop"

    def pack(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def unpack(data: bytes, rank: int) -> "Greeting":
        """Raises VersionMismatchError when ``data`` is not a greeting as this version knows it."""
        try:
            said = json.loads(data)
            # The version is read first and alone, so that a greeting of another shape still says where it came from.
            if set(said) != set(Greeting.__dataclass_fields__):
                raise VersionMismatchError(f"rank {rank} runs intentpm {said.get('version', 'of unknown version')}")
            return Greeting(**said)
        except (ValueError, AttributeError, TypeError):
            raise VersionMismatchError(f"rank {rank} does not speak intentpm's start-up protocol") from None


def check_versions(greetings: Sequence[Greeting]) -> None:
    """Raises VersionMismatchError naming which ranks run what, unless all are equal."""
    kinds: dict[str, list[int]] = {}
    for rank, greeting in enumerate(greetings):
        kinds.setdefault(f"intentpm {greeting.version} (protocol {greeting.protocol})", []).append(rank)
    if len(kinds) > 1:
        found = "; ".join(f"{kind} on {name_ranks(ranks)}" for kind, ranks in kinds.items())
        raise VersionMismatchError(f"the ranks run different versions: {found}. Install the same one everywhere")


def check_same_on_loss(greetings: Sequence[Greeting]) -> None:
    """Raises ConfigError naming which ranks were told what, unless all are equal."""
    ranks: dict[str, list[int]] = {}
    for rank, greeting in enumerate(greetings):
        ranks.setdefault(greeting.on_loss, []).append(rank)
    if len(ranks) > 1:
        found = ", ".join(f"{what!r} by {name_ranks(who)}" for what, who in ranks.items())
        raise ConfigError(f"the ranks ask for different on_loss: {found}")


def usable_transports(greetings: Sequence[Greeting]) -> tuple[list[str], list[str]]:
    """The transports every rank can use, best first, and why others were passed over.

    One transport if any rank was told which; at least one in any case. Raises ConfigError when ranks were told
    different names, TransportUnavailableError when the one asked for does not work on some rank, TransportError when no
    transport works on all.
    """
    wishes: dict[str, list[int]] = {}
    for rank, greeting in enumerate(greetings):
        if greeting.wish != "auto":
            wishes.setdefault(greeting.wish, []).append(rank)
    if len(wishes) > 1:
        found = ", ".join(f"{name} by {name_ranks(ranks)}" for name, ranks in wishes.items())
        raise ConfigError(f"the ranks ask for different transports: {found}")
    for wish in wishes:
        objections = _objections(greetings, wish)
        if objections:
            raise TransportUnavailableError(f"transport {wish!r} cannot be used: {objections}")
        return [wish], []
    found_objections = {name: _objections(greetings, name) for name in greetings[0].transports}
    passed_over = [f"{name} cannot be used: {why}" for name, why in found_objections.items() if why]
    if len(passed_over) == len(found_objections):
        raise TransportError(f"no transport works on every rank: {'; '.join(passed_over)}")
    return [name for name, why in found_objections.items() if not why], passed_over


def _objections(greetings: Sequence[Greeting], name: str) -> str:
    """Which ranks cannot use ``name`` and why; "" when all can."""
    return _by_ranks([greeting.transports.get(name, "no transport of that name") for greeting in greetings])


def left_out(greetings: Sequence[Greeting], name: str) -> str:
    """Which ranks use ``name`` without some part of it, and why; "" when none does."""
    return _by_ranks([greeting.notes.get(name, "") for greeting in greetings])


def _by_ranks(said: Sequence[str]) -> str:
    """ "ranks 0, 1: this; rank 2: that", for what each rank said; those that said "" are not named."""
    reasons: dict[str, list[int]] = {}
    for rank, reason in enumerate(said):
        if reason:
            reasons.setdefault(reason, []).append(rank)
    return "; ".join(f"{name_ranks(ranks)}: {reason}" for reason, ranks in reasons.items())


def name_ranks(ranks: Sequence[int]) -> str:
    """ "rank 3", "ranks 1, 2, 5", cut after ten."""
    shown = ", ".join(map(str, ranks[:10])) + (f" and {len(ranks) - 10} more" if len(ranks) > 10 else "")
    return f"rank{'s' if len(ranks) != 1 else ''} {shown}"
