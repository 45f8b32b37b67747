"""Base class of every transport; ``base.pxd`` is the contract."""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from intentpm.foundation.handles import refuse_to_cross

from intentpm.foundation.system cimport aligned_alloc


cdef class Transport:
    """A rank's connection to its peers. See ``base.pxd`` for the data path's contract.

    Life: construct, ``address()``, exchange the addresses of all ranks (bootstrap), ``connect()``, data path,
    ``close()``.
    """

    def __init__(self, *args, **kwargs):
        raise TypeError("Transport is an interface: construct TcpTransport, UcxTransport, ...")

    def address(self) -> bytes:
        """What the peers need to reach this rank; opaque, at most 64 KiB."""
        raise NotImplementedError

    def connect(self, addresses, timeout_s) -> None:
        """Connects to every peer, given the addresses of all ranks in rank order (own included).

        Raises TransportError (with the ranks missing and what was tried) when not all are connected in ``timeout_s``.
        """
        raise NotImplementedError

    def close(self, timeout_s=5.0) -> None:
        """Flushes what was accepted, for at most ``timeout_s``, then closes. Idempotent. Peers see a clean end."""
        raise NotImplementedError

    def watch_processes(self) -> None:
        """From now on ``has_ended`` knows of what can be known. Once, after ``connect``; costs a descriptor per peer."""

    def has_ended(self, rank: int) -> bool:
        """The rank's process is known to have ended, not only its connection. False: it has not, or nothing is known."""
        return False

    def describe(self) -> dict:
        """Facts for ``doctor`` and ``pm.stats()``: name, devices, protocol version, options in force."""
        return {"name": self.name}

    def counters(self) -> dict:
        """Messages and bytes since start (headers included)."""
        return {
            "sent_messages": self.sent_messages, "sent_bytes": self.sent_bytes,
            "received_messages": self.received_messages, "received_bytes": self.received_bytes,
        }

    def __reduce_ex__(self, protocol):
        refuse_to_cross(self, "each rank makes and connects its own")

    cdef SendStatus send(
            self, uint32_t destination, uint8_t message_id, const char* header, size_t header_bytes,
            const Piece* pieces, size_t piece_count, done_fn done, void* argument) noexcept nogil:
        return SEND_PEER_LOST

    cdef int progress(self) noexcept nogil:
        return 0

    cdef int event_fd(self) noexcept nogil:
        return -1

    cdef bint arm(self) noexcept nogil:
        return True

    cdef bint is_alive(self, uint32_t rank) noexcept nogil:
        return rank == self.rank

    cdef int64_t last_heard_ns(self, uint32_t rank) noexcept nogil:
        return self.now_ns()

    cdef void expect_close(self, uint32_t rank) noexcept nogil:
        pass

    cdef void drop(self, uint32_t rank, const char* why) noexcept nogil:
        pass

    cdef size_t backlog_bytes(self, uint32_t rank) noexcept nogil:
        return 0

    cdef bint has_backlog(self) noexcept nogil:
        cdef uint32_t rank
        for rank in range(self.size):
            if self.backlog_bytes(rank):
                return True
        return False

    cdef int64_t now_ns(self) noexcept nogil:
        cdef timespec t
        clock_gettime(CLOCK_MONOTONIC, &t)
        return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec

    cdef bint request_step(self, int64_t at_ns) noexcept nogil:
        return False

    cdef void run_until(
            self, condition_fn condition, void* context, void* argument, int64_t until_ns) noexcept nogil:
        pass

    cdef char* allocate(self, size_t size_bytes) noexcept nogil:
        return <char*>aligned_alloc(64, (size_bytes + 63) & ~<size_t>63)

    cdef void release(self, char* data, size_t size_bytes) noexcept nogil:
        free(data)
