"""How much of what is to be sent one socket may hold: enough to keep its link busy, and no more.

By itself the system lets a socket fill every queue on the way, by megabytes. What others send over the link then waits for tens
of milliseconds behind rows that nobody is in a hurry for: a step of training that averages its dense gradients waits for all
rows of the step before. Messages that wait here instead are in nobody's way.

So where packets wait for longer than LONGEST_WAIT_US, the socket is allowed what the link takes in WAIT_US. Such a limit stays,
for the system takes none back, but follows the rate at which the link delivers.

A link that is found full, and is slow, gets coded bodies too (word_coding.hpp): fewer bytes for some time of the processor.

Called by: TcpTransport, once per megabyte. There is no state but the socket's.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

cdef extern from "<linux/tcp.h>" nogil:
    cdef struct tcp_info:
        uint32_t tcpi_rtt            # smoothed, us
        uint32_t tcpi_min_rtt        # us
        uint64_t tcpi_delivery_rate  # bytes/s
    enum: TCP_INFO

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    int getsockopt(int fd, int level, int name, void* value, socklen_t* size)
    int setsockopt(int fd, int level, int name, const void* value, socklen_t size)
    enum: SOL_SOCKET, SO_SNDBUF

cdef extern from "<netinet/in.h>" nogil:
    enum: IPPROTO_TCP

cdef enum:
    LONGEST_WAIT_US = 8000           # of packets, before anything is done about it
    WAIT_US = 5000                   # that is aimed at: a scheduler's tick, after which the socket is filled again
    LEAST_ROOM_BYTES = 1 << 17
    MOST_ROOM_BYTES = 1 << 30
    LOOK_BYTES = 1 << 20             # that a socket takes between two looks at it
    SLOW_BYTES_PER_S = 400_000_000   # of a link: coding and decoding take 0.4 ns per byte each, and save a seventh of the bytes


cdef inline size_t room_wanted(uint32_t rtt_us, uint32_t min_rtt_us, uint64_t bytes_per_s, size_t limit) noexcept nogil:
    """The limit that the socket should have. limit: that it has; 0: none."""
    cdef size_t wanted
    if limit == 0 and rtt_us < min_rtt_us + LONGEST_WAIT_US:
        return 0
    wanted = <size_t>min(
        <double>MOST_ROOM_BYTES, max(<double>LEAST_ROOM_BYTES, 1e-6 * bytes_per_s * (min_rtt_us + WAIT_US)))
    if limit and min_rtt_us > WAIT_US and rtt_us < min_rtt_us + WAIT_US:
        wanted = max(wanted, limit + limit // 2)     # a far link that is not full may deliver no more than the limit lets it
    return limit if limit - limit // 4 <= wanted <= limit + limit // 4 else wanted


cdef inline bint fit_room(int fd, size_t* limit, size_t most) noexcept nogil:
    """limit: as above; what it is from now on. most: that the system allows who asks for it; what needs more is left to it.

    Returns whether the link is full and slow.
    """
    cdef tcp_info info
    cdef socklen_t size = sizeof(info)
    cdef size_t wanted
    cdef int half
    memset(&info, 0, sizeof(info))
    if getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0 or info.tcpi_delivery_rate == 0:
        return False                             # of an old system: it stays as it is
    wanted = room_wanted(info.tcpi_rtt, info.tcpi_min_rtt, info.tcpi_delivery_rate, limit[0])
    if wanted > most:
        wanted = most if limit[0] else 0         # a far link: less than its round trip takes would slow it down
    half = <int>(wanted // 2)                    # the system doubles it, for what it needs besides the bytes
    if wanted != limit[0] and setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &half, sizeof(half)) == 0:
        limit[0] = wanted
    return limit[0] > 0 and info.tcpi_delivery_rate < SLOW_BYTES_PER_S
