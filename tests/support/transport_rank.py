"""A rank of a transport test in a process of its own: addresses over stdin and stdout, verdict as its last line.

Usage: python transport_rank.py RANK SIZE SECRET_HEX HOST PEER_TIMEOUT_S MODE
MODE: "exchange" (all-to-all, then a clean end), "lose RANK" (waits for the loss of that rank and says why) or "flood"
(rank 0 sends FLOOD_MB to rank 1, and says at which paces its socket did).
"""

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from intentpm.transports.mailbox import Mailbox
from intentpm.transports.tcp import TcpTransport

ROUNDS = 50
FLOOD_MB = 60
SO_MAX_PACING_RATE = 47


def exchange(box: Mailbox, rank: int, size: int) -> str:
    others = sorted(set(range(size)) - {rank})
    for number in range(ROUNDS):
        for target in others:
            box.send(target, number, bytes([rank, target]), [bytes([number]) * (number * 1000)])
    received = box.receive_many(ROUNDS * len(others), 30)
    for message in received:
        assert message.header == bytes([message.source, rank])
        assert message.body == bytes([message.message_id]) * (message.message_id * 1000)
    for target in others:
        box.expect_close(target)
    box.run_for(0.5)
    return f"received {len(received)}"


def lose(box: Mailbox, rank: int, lost: int) -> str:
    """Keeps sending, as heartbeats would, until the operating system gives the silent connection up."""
    if rank == lost:
        box.run_for(30)
        return "was lost"
    while not (losses := [loss for loss in box.lost if loss.rank == lost]):  # others may have ended before
        if box.is_alive(lost):
            box.send(lost, 1)
        box.run_for(0.1)
    return f"lost {lost}: {losses[0].why}"


def flood(box: Mailbox, rank: int) -> str:
    if rank == 1:
        received = box.receive_many(FLOOD_MB, 30)
        box.send(0, 0)
        box.expect_close(0)
        box.run_for(0.5)
        return f"received {sum(len(message.body) for message in received)}"
    paces = set()
    for number in range(FLOOD_MB):
        box.send(1, number, b"", [bytes(1 << 20)])
        while box.backlog_bytes(1) > 4 << 20:
            box.run_for(0.001)
        paces |= paces_of_sockets()
    box.receive_many(1, 30)
    box.expect_close(1)
    return f"paced {sorted(paces)}"


def paces_of_sockets() -> set[int]:
    """Bytes per second, of the connected sockets of this process."""
    paces = set()
    for entry in Path("/proc/self/fd").iterdir():
        if not os.path.realpath(entry).rpartition("/")[2].startswith("socket:"):
            continue
        with socket.socket(fileno=os.dup(int(entry.name))) as other, suppress(OSError):
            other.getpeername()
            paces.add(int.from_bytes(other.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 8), "little"))
    return paces


def main() -> None:
    rank, size, secret, host, peer_timeout_s, mode, *rest = sys.argv[1:]
    transport = TcpTransport(
        int(rank), int(size), bytes.fromhex(secret), host=host or None, peer_timeout_s=float(peer_timeout_s)
    )
    box = Mailbox(transport)
    print(transport.address().hex(), flush=True)
    transport.connect([bytes.fromhex(line) for line in sys.stdin.readline().split()], 20)
    print("connected", transport.describe()["peers"], flush=True)
    if mode == "exchange":
        print(exchange(box, int(rank), int(size)), flush=True)
    else:
        print(flood(box, int(rank)) if mode == "flood" else lose(box, int(rank), int(rest[0])), flush=True)
    box.close(2)


if __name__ == "__main__":
    main()
