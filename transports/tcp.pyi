from intentpm.transports.base import Transport

class TcpTransport(Transport):
    codes_all: bool
    @property
    def spared_bytes(self) -> int: ...
    def __init__(
        self,
        rank: int,
        size: int,
        secret: bytes,
        *,
        host: str | None = None,
        port: int = 0,
        peer_timeout_s: float = 10.0,
    ) -> None: ...

USUAL_WMEM_MAX: int

def room_wanted_at(rtt_us: int, min_rtt_us: int, bytes_per_s: int, limit: int = 0) -> int: ...
def rate_known_after(rates: list[float]) -> float: ...
def paces_after(looks: list[tuple[int, int, int]]) -> list[float]: ...
