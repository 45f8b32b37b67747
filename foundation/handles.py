"""What a handle says when it is pickled or copied: it stands for things of one process."""

from typing import Any, NoReturn

from intentpm.foundation.errors import HandleError


def refuse_to_cross(handle: Any, instead: str) -> NoReturn:
    """For ``__reduce_ex__``. ``instead``: what to do, as the end of a sentence. Raises HandleError."""
    raise HandleError(
        f"{handle!r} is a handle to memory, threads and connections of this process, which no other process "
        f"(a DataLoader's worker, a pool's) and no copy has: it cannot be pickled or copied; {instead}"
    )
