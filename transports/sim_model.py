"""What a simulated network is like: pure numbers."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NetworkModel:
    """Costs and disorder of the ``sim`` transport. Times in microseconds of virtual time.

    A message leaves its sender's link ``message_us + bytes / bandwidth`` after the one before, travels ``latency_us``
    plus a jitter drawn uniformly from [0, ``jitter_us``], and occupies the receiver's link as it did the sender's.
    """

    latency_us: float = 2.0
    bandwidth_gbytes_per_s: float = 10.0
    message_us: float = 0.1
    jitter_us: float = 0.0
    slow_share: float = 0.0
    """Share of messages, drawn at random, that travel up to ``slow_us`` longer."""
    slow_us: float = 0.0
    fifo: bool = False
    """Messages between two ranks keep their order."""
    late_done_share: float = 0.0
    """Share of sends whose memory stays in use until delivery; of the others it is copied at once."""
    step_delay_us: float = 0.0
    """A step asked for comes up to this much late."""
    wake_delay_us: float = 0.0
    """A worker goes on up to this long after what it waited for has come."""

    @classmethod
    def disorderly(cls, seed: int) -> "NetworkModel":
        """A network meant to find defects: its kinds of disorder, and how much of each, are drawn from ``seed``."""
        draw = random.Random(f"model {seed}")
        return cls(
            latency_us=draw.choice((0.5, 2.0, 20.0)),
            bandwidth_gbytes_per_s=draw.choice((0.1, 10.0)),
            message_us=draw.choice((0.0, 0.1, 2.0)),
            jitter_us=draw.choice((0.0, 1.0, 10.0, 100.0)),
            slow_share=draw.choice((0.0, 0.02, 0.2)),
            slow_us=draw.choice((50.0, 1000.0)),
            fifo=draw.random() < 0.2,
            late_done_share=draw.choice((0.0, 0.5, 1.0)),
            step_delay_us=draw.choice((0.0, 5.0, 100.0)),
            wake_delay_us=draw.choice((0.0, 5.0, 50.0)),
        )
