from collections.abc import Mapping

from intentpm.transports.base import Transport

class UcxTransport(Transport):
    def __init__(
        self,
        rank: int,
        size: int,
        secret: bytes,
        *,
        peer_timeout_s: float = 10.0,
        options: Mapping[str, str] | None = None,
    ) -> None: ...
