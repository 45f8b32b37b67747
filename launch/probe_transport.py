"""``intentpm run -n 2 -m intentpm.launch.probe_transport NAME``: real bytes over a transport; prints one JSON line."""

import json
import sys
from typing import Any

import numpy as np

from intentpm.launch.bootstrap import start_transport
from intentpm.launch.world import find_world
from intentpm.runtime.config import read_config

WARM_UP, ROUND_TRIPS, SMALL_BYTES = 200, 2000, 64
STREAMED, LARGE_BYTES = 64, 1 << 20
TIMEOUT_S = 10.0


def main(name: str) -> None:
    config = read_config({"transport": name, "start_timeout": 15.0})
    world = find_world(config)
    try:
        transport = start_transport(config, world)
        try:
            facts = {}
            if world.rank == 0:
                facts = _ask(transport)
            else:
                _answer(transport)
            # Nobody closes before both are done.
            world.allgather(b"", TIMEOUT_S)
        finally:
            transport.close()
    finally:
        world.close()
    if facts:
        print(json.dumps(facts))


def _ask(transport: Any) -> dict[str, float]:
    from intentpm.transports.mailbox import Mailbox

    mailbox = Mailbox(transport)
    mailbox.pingpong(1, SMALL_BYTES, WARM_UP, TIMEOUT_S, sleep=True)
    trips_us = mailbox.pingpong(1, SMALL_BYTES, ROUND_TRIPS, TIMEOUT_S, sleep=True) / 1e3
    seconds = mailbox.stream(1, LARGE_BYTES, STREAMED, TIMEOUT_S)
    return {
        "round_trip_us": float(np.median(trips_us)),
        "round_trip_p99_us": float(np.percentile(trips_us, 99)),
        "gigabytes_per_s": STREAMED * LARGE_BYTES / seconds / 1e9,
    }


def _answer(transport: Any) -> None:
    from intentpm.transports.mailbox import Mailbox

    mailbox = Mailbox(transport)
    mailbox.echo(0, WARM_UP + ROUND_TRIPS, TIMEOUT_S, sleep=True)
    mailbox.sink(0, STREAMED, TIMEOUT_S)


if __name__ == "__main__":
    main(sys.argv[1])
