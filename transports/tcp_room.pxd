"""How much of what is to be sent one socket may hold: enough to keep its link busy, and no more.

By itself the system lets a socket fill every queue on the way, by megabytes. What others send over the link then waits for tens
of milliseconds behind rows that nobody is in a hurry for: a step of training that averages its dense gradients waits for all
rows of the step before. Messages that wait here instead are in nobody's way.

So where packets wait for longer than LONGEST_WAIT_US, the socket is allowed what the link takes in WAIT_US. Such a limit stays,
for the system takes none back, but follows the rate at which the link delivers. Until that is measured (tcp_pace.pxd), it is
what the system says of the last packets; that can be a hundred times the link's, where a shaper lets the first packets after a
pause through at once, so it rises by a quarter at most from one look to the next. What the link carries for all sockets
(tcp_pace.pxd) is more than one gets.

A link that is found full, and is slow, gets coded bodies too (word_coding.hpp): fewer bytes for some time of the processor. And
its sockets are paced.

Called by: TcpTransport, once per megabyte.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from intentpm.transports.tcp_pace cimport Look, Pace, pace_after

cdef extern from "<linux/tcp.h>" nogil:
    cdef struct tcp_info:
        uint32_t tcpi_rtt            # smoothed, us
        uint32_t tcpi_min_rtt        # us
        uint64_t tcpi_delivery_rate  # bytes/s
        uint64_t tcpi_bytes_acked
        uint64_t tcpi_busy_time      # us
    enum: TCP_INFO

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    int getsockopt(int fd, int level, int name, void* value, socklen_t* size)
    int setsockopt(int fd, int level, int name, const void* value, socklen_t size)
    enum: SOL_SOCKET, SO_MAX_PACING_RATE, SO_SNDBUF

cdef extern from "<netinet/in.h>" nogil:
    enum: IPPROTO_TCP

cdef enum:
    LONGEST_WAIT_US = 8000           # of packets, before anything is done about it
    WAIT_US = 5000                   # that is aimed at: a scheduler's tick, after which the socket is filled again
    LEAST_ROOM_BYTES = 1 << 17
    MOST_ROOM_BYTES = 1 << 30
    LOOK_BYTES = 1 << 20             # that a socket takes between two looks at it
    SLOW_BYTES_PER_S = 400_000_000   # of a link: coding and decoding take 0.4 ns per byte each, and save a seventh of the bytes
    NO_PACE = 0xffffffff             # what the system takes for none

# Every field: guarded by the transport's lock.
cdef struct Room:
    size_t limit                     # bytes that the socket may hold; 0: what the system gives it
    size_t taken_bytes               # by the socket, since it was last looked at
    bint ran_empty                   # since then it had nothing to send
    uint64_t slow_bytes              # that it took while the link was slow
    double bytes_per_s               # that the link delivers; 0: not known yet
    bint is_slow                     # the link was full when last looked at, and slow: what has to wait is coded
    Pace pace
    uint32_t system_pace             # that the socket was given; 0: none yet, as NO_PACE


cdef inline double rate_known(double known, double said) noexcept nogil:
    """The rate of a link after the system said this one of its last packets. known: the rate before; 0: none."""
    if known == 0:
        return said
    return min(said, 1.25 * known) if said > known else known - 0.25 * (known - said)


cdef inline size_t room_wanted(uint32_t rtt_us, uint32_t min_rtt_us, double bytes_per_s, size_t limit) noexcept nogil:
    """The limit that the socket should have. limit: that it has; 0: none."""
    cdef size_t wanted
    if limit == 0 and rtt_us < min_rtt_us + LONGEST_WAIT_US:
        return 0
    wanted = <size_t>min(
        <double>MOST_ROOM_BYTES, max(<double>LEAST_ROOM_BYTES, 1e-6 * bytes_per_s * (min_rtt_us + WAIT_US)))
    if limit and min_rtt_us > WAIT_US and rtt_us < min_rtt_us + WAIT_US:
        wanted = max(wanted, limit + limit // 2)     # a far link that is not full may deliver no more than the limit lets it
    return limit if limit - limit // 4 <= wanted <= limit + limit // 4 else wanted


cdef inline void fit_room(int fd, Room* room, size_t most, uint64_t slow_bytes) noexcept nogil:
    """Looks at the socket. most: that the system allows who asks for it; what needs more is left to it. slow_bytes: what all
    sockets took while their links were slow."""
    cdef tcp_info info
    cdef socklen_t size = sizeof(info)
    cdef size_t wanted
    cdef int half
    room.taken_bytes = 0
    room.is_slow = False
    memset(&info, 0, sizeof(info))
    if getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0 or info.tcpi_delivery_rate == 0:
        return                                   # of an old system: it stays as it is
    room.bytes_per_s = rate_known(room.bytes_per_s, <double>info.tcpi_delivery_rate)
    if room.pace.measurements > 0:
        room.bytes_per_s = min(room.bytes_per_s, room.pace.link_bytes_per_s)
    wanted = room_wanted(info.tcpi_rtt, info.tcpi_min_rtt, room.bytes_per_s, room.limit)
    if wanted > most:
        wanted = most if room.limit else 0       # a far link: less than its round trip takes would slow it down
    half = <int>(wanted // 2)                    # the system doubles it, for what it needs besides the bytes
    if wanted != room.limit and setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &half, sizeof(half)) == 0:
        room.limit = wanted
    room.is_slow = room.limit > 0 and room.bytes_per_s < SLOW_BYTES_PER_S
    _fit_pace(fd, room, &info, slow_bytes)
    room.ran_empty = False


cdef inline void _fit_pace(int fd, Room* room, const tcp_info* info, uint64_t slow_bytes) noexcept nogil:
    cdef Look look
    cdef double pace = 0
    cdef uint32_t system_pace = NO_PACE if room.system_pace else 0
    if room.is_slow:
        look.acked_bytes = info.tcpi_bytes_acked
        look.busy_us = info.tcpi_busy_time
        look.others_bytes = slow_bytes - room.slow_bytes
        look.waits_us = info.tcpi_rtt - min(info.tcpi_rtt, info.tcpi_min_rtt)
        look.ran_empty = room.ran_empty
        pace = pace_after(&room.pace, &look)
    else:
        memset(&room.pace, 0, sizeof(room.pace))
    if pace > 0:
        system_pace = <uint32_t>min(pace, <double>NO_PACE)
    if system_pace != room.system_pace:
        room.system_pace = system_pace
        setsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &system_pace, sizeof(system_pace))
