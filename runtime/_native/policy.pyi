WAY_NAMES: tuple[str, ...]

def weigh_ways(
    *,
    row_bytes: int,
    fetched_bytes: int = 0,
    written_bytes: int = 0,
    news_bytes: int = 0,
    owner_intends: bool = False,
    others_hold: bool = False,
    once: bool = False,
    returns: bool = False,
    told: int = 1,
    astray: float = 0.0,
    with_row: float = 0.0,
    stall_bytes: float = 0.0,
) -> tuple[dict[str, float], str]: ...
def surplus(own: int, their: int, size: int) -> int: ...
def as_told(load: int) -> int: ...
