"""A rank of a ucx test in a process of its own: addresses over stdin and stdout, or through MPI; verdict as last line.

Usage: python ucx_rank.py RANK SIZE SECRET_HEX MODE [ARGUMENT]
or under mpirun: python ucx_rank.py mpi SECRET_HEX MODE [ARGUMENT]
MODE is the name of one of the functions below.
"""

import os
import sys
import time
import zlib

from intentpm.foundation.errors import ForkError
from intentpm.transports.mailbox import Mailbox
from intentpm.transports.messenger import Message
from intentpm.transports.ucx import UcxTransport

ROUNDS = 50
GOODBYE = 100
MIB = 1 << 20
PEER_TIMEOUT_S = 4.0
_KEPT: list[Message] = []


def take(box: Mailbox, count: int, *message_ids: int) -> list[Message]:
    """The next ``count`` messages of these ids; others that come in between are kept for later calls."""
    taken: list[Message] = []
    kept: list[Message] = []
    while len(taken) < count:
        message = _KEPT.pop(0) if _KEPT else box.receive(30)
        (taken if message.message_id in message_ids else kept).append(message)
    _KEPT[:0] = kept
    return taken


def leave(box: Mailbox, rank: int, size: int) -> None:
    """The engine's goodbye in small: nobody closes before everybody has said so."""
    others = set(range(size)) - {rank}
    for target in others:
        box.send(target, GOODBYE)
    for message in take(box, len(others), GOODBYE):
        box.expect_close(message.source)
    box.run_for(0.2)
    assert box.lost == []
    assert box.pending == 0


def exchange(box: Mailbox, rank: int, size: int) -> str:
    others = sorted(set(range(size)) - {rank})
    for number in range(ROUNDS):
        for target in others:
            box.send(target, number, bytes([rank, target]), [bytes([number]) * (number * 1000)])
    for message in take(box, ROUNDS * len(others), *range(ROUNDS)):
        assert message.header == bytes([message.source, rank])
        assert message.body == bytes([message.message_id]) * (message.message_id * 1000)
    leave(box, rank, size)
    return f"received {ROUNDS * len(others)}"


def sizes(box: Mailbox, rank: int, size: int, largest_mib: str) -> str:
    """Bodies from nothing to ``largest_mib`` MiB, in one piece and in three, to rank 1."""
    lengths = [0, 1, 8191, 8192, 8193, 65_536]
    while lengths[-1] < int(largest_mib) * MIB:
        lengths.append(max(MIB, lengths[-1] * 4))
    lengths[-1] = int(largest_mib) * MIB
    body = os.urandom(MIB) * int(largest_mib)
    if rank == 1:
        for message in take(box, 2 * len(lengths), 1):
            length = int.from_bytes(message.header[:8], "little")
            assert len(message.body) == length
            assert zlib.crc32(message.body) == int.from_bytes(message.header[8:], "little")
    else:
        for length in lengths:
            view = memoryview(body)[:length]
            header = length.to_bytes(8, "little") + zlib.crc32(view).to_bytes(4, "little")
            third = length // 3
            box.send(1, 1, header, [view])
            box.send(1, 1, header, [view[:third], view[third : 2 * third], view[2 * third :]]).wait(60)
    leave(box, rank, size)
    return f"moved {len(lengths)} sizes"


def many(box: Mailbox, rank: int, size: int, count: str) -> str:
    begin = time.monotonic()
    if rank == 0:
        box.stream(1, 32, int(count), 60)
    else:
        box.sink(0, int(count), 60)
    leave(box, rank, size)
    return f"streamed in {time.monotonic() - begin:.2f}"


def lose(box: Mailbox, rank: int, size: int, lost: str) -> str:
    """Everyone sends large messages to rank ``lost``, which is killed from outside; then the others still talk."""
    target = int(lost)
    if rank == target:
        box.run_for(30)
        return "was not killed"
    body = bytes(16 * MIB)
    handles = [box.send(target, 1, b"", [body]) for _ in range(64)]
    print("sending", flush=True)
    why = box.wait_lost(target, 20)
    box.run_for(0.3)
    assert all(handle.done_calls == 1 for handle in handles), [handle.done_calls for handle in handles]
    assert handles[-1].status != 0
    assert box.backlog_bytes(target) == 0
    others = set(range(size)) - {rank, target}
    for other in others:
        box.send(other, 2, b"still here", [b"x" * 100_000])
    for message in take(box, len(others), 2):
        assert message.header == b"still here"
    box.run_for(0.3)
    # Another rank may be done already, and gone.
    assert [loss.rank for loss in box.lost if loss.rank not in others] == [target]
    return f"lost {target}: {why}"


def idle(box: Mailbox, rank: int, size: int, duration_s: str) -> str:
    """Nothing happens; the verdict is the share of a CPU that took."""
    begin, begin_cpu = time.monotonic(), time.process_time()
    box.run_for(float(duration_s))
    share = (time.process_time() - begin_cpu) / (time.monotonic() - begin)
    leave(box, rank, size)
    return f"used {share:.4f} of a CPU"


def fork(box: Mailbox, rank: int, size: int) -> str:
    child = os.fork()
    if child == 0:
        outcomes = []
        for call in (box.transport.address, box.transport.describe, box.transport.close):
            try:
                call()
                outcomes.append(f"{call.__name__} worked")
            except ForkError:
                pass
        del box
        os._exit(len(outcomes))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "a forked child could use the transport"
    leave(box, rank, size)
    return "the child was refused"


def main() -> None:
    if sys.argv[1] == "mpi":
        from mpi4py import MPI

        world = MPI.COMM_WORLD
        rank, size, (secret, mode, *rest) = world.rank, world.size, sys.argv[2:]
    else:
        world = None
        rank, size, (secret, mode, *rest) = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    transport = UcxTransport(rank, size, bytes.fromhex(secret), peer_timeout_s=PEER_TIMEOUT_S)
    box = Mailbox(transport)
    if world is not None:
        addresses = world.allgather(transport.address())
    else:
        print(transport.address().hex(), flush=True)
        addresses = [bytes.fromhex(line) for line in sys.stdin.readline().split()]
    transport.connect(addresses, 30)
    print("connected", transport.describe()["ucx_library"], transport.describe()["paths"], flush=True)
    print(globals()[mode](box, rank, size, *rest), flush=True)
    box.close(2)


if __name__ == "__main__":
    main()
