"""The first exchange of a world that was given no secret by its launcher: who shares a host, and a secret for all."""

import os
from collections.abc import Callable

_BOOT_ID_BYTES = 36


def introduce(
    allgather: Callable[[bytes, float], list[bytes]], rank: int, secret: str | None, timeout_s: float
) -> tuple[bytes, int]:
    """Returns the job's secret (rank 0's ``secret``, or one that rank 0 makes) and how many ranks share this host.

    Hosts are told apart by the kernel's boot id: containers on one host share its cores, whatever their host names.
    """
    offer = secret.encode() if secret else os.urandom(32)
    answers = allgather(boot_id() + offer, timeout_s)
    mine = answers[rank][:_BOOT_ID_BYTES]
    return answers[0][_BOOT_ID_BYTES:], sum(answer[:_BOOT_ID_BYTES] == mine for answer in answers)


def boot_id() -> bytes:
    """36 bytes that are equal on two ranks exactly when they share a running kernel."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            identity = file.read(_BOOT_ID_BYTES)
    except OSError:
        identity = os.uname().nodename.encode()[:_BOOT_ID_BYTES]
    return identity.ljust(_BOOT_ID_BYTES)
