"""What the tcp transport asks of one connected socket. Nothing here waits.

Called by: TcpTransport, per message and per poll.

Assumption: one thread at a time uses a socket (the transport's caller sees to it). There is no state but the socket's.
"""

from libc.errno cimport EINTR, errno
from libc.stddef cimport size_t
from libc.string cimport memset
from posix.ioctl cimport ioctl
from posix.uio cimport iovec

from intentpm.foundation.system cimport POLLOUT, poll, pollfd

cdef extern from "<sys/socket.h>" nogil:
    cdef struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    enum: MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR
    ssize_t sendmsg(int fd, const msghdr* message, int flags)
    ssize_t recv(int fd, void* buffer, size_t length, int flags)
    int shutdown(int fd, int how)

cdef extern from "<linux/sockios.h>" nogil:
    enum: SIOCOUTQ


cdef inline ssize_t send_gathered(int fd, iovec* entries, size_t count) noexcept nogil:
    """Bytes taken, or -1 and errno."""
    cdef msghdr message
    cdef ssize_t sent
    memset(&message, 0, sizeof(message))
    message.msg_iov = entries
    message.msg_iovlen = count
    while True:
        sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent >= 0 or errno != EINTR:
            return sent


cdef inline size_t total_bytes(const iovec* entries, size_t count) noexcept nogil:
    cdef size_t index, total = 0
    for index in range(count):
        total += entries[index].iov_len
    return total


cdef inline bint has_room(int fd) noexcept nogil:
    """Whether a full socket has drained enough to be worth a write. Unlike a refused write, asking takes no lock."""
    cdef pollfd entry
    entry.fd = fd
    entry.events = POLLOUT
    return poll(&entry, 1, 0) != 0


cdef inline ssize_t receive(int fd, void* where, size_t room) noexcept nogil:
    """Bytes received; 0: the other side has closed; -1 and errno: none."""
    return recv(fd, where, room, MSG_DONTWAIT)


cdef inline void end_sending(int fd) noexcept nogil:
    shutdown(fd, SHUT_WR)


cdef inline bint is_acknowledged(int fd) noexcept nogil:
    """Whether the other side's system has all that was sent."""
    cdef int unacknowledged_bytes = 0
    return ioctl(fd, SIOCOUTQ, &unacknowledged_bytes) != 0 or unacknowledged_bytes == 0
