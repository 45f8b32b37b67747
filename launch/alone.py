"""The world of a process that no launcher started: one rank, no network."""

import os

from intentpm.runtime.config import Config


class AloneWorld:
    """Implements ``intentpm.runtime.types.World`` for one rank."""

    launcher = "alone"
    rank = 0
    size = 1
    local_ranks = 1

    def __init__(self, config: Config) -> None:
        self.secret = config.secret.encode() if config.secret else os.urandom(32)

    def allgather(self, payload: bytes, timeout_s: float) -> list[bytes]:
        return [payload]

    def close(self) -> None:
        pass
