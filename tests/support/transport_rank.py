"""A rank of a transport test in a process of its own: addresses over stdin and stdout, verdict as its last line.

Usage: python transport_rank.py RANK SIZE SECRET_HEX HOST PEER_TIMEOUT_S MODE
MODE: "exchange" (all-to-all, then a clean end) or "lose RANK" (waits for the loss of that rank and says why).
"""

import sys

from intentpm.transports.mailbox import Mailbox
from intentpm.transports.tcp import TcpTransport

ROUNDS = 50


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


def main() -> None:
    rank, size, secret, host, peer_timeout_s, mode, *rest = sys.argv[1:]
    transport = TcpTransport(
        int(rank), int(size), bytes.fromhex(secret), host=host or None, peer_timeout_s=float(peer_timeout_s)
    )
    box = Mailbox(transport)
    print(transport.address().hex(), flush=True)
    transport.connect([bytes.fromhex(line) for line in sys.stdin.readline().split()], 20)
    print("connected", transport.describe()["peers"], flush=True)
    print(exchange(box, int(rank), int(size)) if mode == "exchange" else lose(box, int(rank), int(rest[0])), flush=True)
    box.close(2)


if __name__ == "__main__":
    main()
