"""How fast a socket sends to a link that is slow and was found full.

What it is given waits in the socket then, and not in the queue to the link, where the few packets of an all-reduce, which pass
it several times one after the other, would wait behind it each time. (With 2 hosts at 500 Mbit/s the all-reduce of a small
model took 10 ms beside rows that nobody was in a hurry for, and takes 4.)

What the link carries is measured from time to time, and when packets wait all the same, at full speed: over a megabyte, after
another has used up what a shaper lets through at once. What the other sockets to such links took in that time counts too, so
each may send nearly as fast as the link: a share of its own would be lost while it is quiet. (KGE on 4 hosts at 200 Mbit/s took
23 s an epoch where each socket kept to its share, and takes 18.) A socket that ran empty meanwhile tells nothing: it goes on
at full speed until it has sent a megabyte in one go. A single measurement can be wrong by half all the same; the median of five
is within a tenth, and these are soon had.

Called by: tcp_room.pxd. Pure: no clock, no memory but the struct, which the transport's lock guards.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    PACED_PERCENT = 95               # of what the link carries
    PACED_WAIT_US = 4000             # of packets: longer than a paced link explains
    MOST_CROWDED_LOOKS = 4           # in a row
    FULL_SPEED_LOOKS = 2
    FEWEST_LOOKS = 12                # from one measurement to the next, and
    MEASURED_FOR_US = 800_000        # so long, once there are
    KEPT_MEASUREMENTS = 5

cdef struct Look:
    uint64_t acked_bytes             # of this socket, as the system counts them
    uint64_t busy_us                 # with something to send, likewise
    uint64_t others_bytes            # that other sockets to slow links have taken
    uint32_t waits_us                # how long packets wait
    bint ran_empty                   # since the last look

cdef struct Pace:
    Look last
    uint64_t measured_us             # ``busy_us`` of the last measurement
    double measured[KEPT_MEASUREMENTS]  # bytes per second of the link; the last one first
    int measurements                 # so many
    double link_bytes_per_s          # the median of these; 0: not measured yet
    int looks                        # since full speed began
    int crowded_looks                # of these, so many the last ones, packets have been waiting


cdef inline double pace_after(Pace* pace, const Look* look) noexcept nogil:
    """After another look, a megabyte after the last one: bytes per second, until the next; 0: as fast as it can."""
    pace.looks += 1
    pace.crowded_looks = pace.crowded_looks + 1 if look.waits_us > PACED_WAIT_US else 0
    if pace.looks == FULL_SPEED_LOOKS:
        if look.ran_empty or look.busy_us <= pace.last.busy_us:
            pace.looks -= 1
        else:
            _measured(pace, 1e6 * (
                look.acked_bytes - pace.last.acked_bytes + look.others_bytes - pace.last.others_bytes)
                / (look.busy_us - pace.last.busy_us))
            pace.measured_us = look.busy_us
            pace.crowded_looks = 0
    elif pace.crowded_looks >= MOST_CROWDED_LOOKS or pace.looks >= FEWEST_LOOKS and (
            pace.measurements < KEPT_MEASUREMENTS or look.busy_us - pace.measured_us >= MEASURED_FOR_US):
        pace.looks = 0
        pace.crowded_looks = 0
    pace.last = look[0]
    return 0.01 * PACED_PERCENT * pace.link_bytes_per_s if pace.looks >= FULL_SPEED_LOOKS else 0


cdef inline void _measured(Pace* pace, double bytes_per_s) noexcept nogil:
    cdef double ascending[KEPT_MEASUREMENTS]
    cdef int i, at
    pace.measurements = min(pace.measurements + 1, <int>KEPT_MEASUREMENTS)
    for i in range(pace.measurements - 1, 0, -1):
        pace.measured[i] = pace.measured[i - 1]
    pace.measured[0] = bytes_per_s
    for i in range(pace.measurements):
        at = i
        while at > 0 and ascending[at - 1] > pace.measured[i]:
            ascending[at] = ascending[at - 1]
            at -= 1
        ascending[at] = pace.measured[i]
    pace.link_bytes_per_s = ascending[pace.measurements // 2]
