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
