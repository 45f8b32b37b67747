"""What transports and the engine ask of the operating system: memory, locks, sleep, timers, and to be run soon after a wake.

Called by: every folder above. A declaration that two files need stands here; one file's own stays with it.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.time cimport itimerspec, timespec

cdef extern from "<stdlib.h>" nogil:
    void* aligned_alloc(size_t alignment, size_t size)

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_condattr_t:
        pass
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_trylock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_condattr_init(pthread_condattr_t*)
    int pthread_condattr_setclock(pthread_condattr_t*, int)
    int pthread_condattr_destroy(pthread_condattr_t*)
    int pthread_cond_init(pthread_cond_t*, pthread_condattr_t*)
    int pthread_cond_timedwait(pthread_cond_t*, pthread_mutex_t*, const timespec*)
    int pthread_cond_broadcast(pthread_cond_t*)
    int pthread_cond_destroy(pthread_cond_t*)

cdef extern from "<time.h>" nogil:
    enum: CLOCK_MONOTONIC

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* descriptors, unsigned long count, int timeout_ms)
    int ppoll(pollfd* descriptors, unsigned long count, const timespec* timeout, const void* signals)
    enum: POLLIN
    enum: POLLOUT

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int initval, int flags)
    enum: EFD_NONBLOCK
    enum: EFD_CLOEXEC

cdef extern from "<sys/timerfd.h>" nogil:
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec* new, itimerspec* old)
    enum: TFD_NONBLOCK
    enum: TFD_CLOEXEC
    enum: TFD_TIMER_ABSTIME

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        int fd
        uint32_t u32
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    int epoll_wait(int epfd, epoll_event* events, int maxevents, int timeout)
    enum: EPOLLIN
    enum: EPOLLOUT
    enum: EPOLLONESHOT
    enum: EPOLL_CTL_ADD
    enum: EPOLL_CTL_MOD
    enum: EPOLL_CLOEXEC

cdef extern from *:
    """
    #include <string.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    // The layout of struct sched_attr as of Linux 3.14, which later ones extend.
    struct intentpm_sched_attr {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime_ns, deadline_ns, period_ns;
    };
    // Asks the scheduler to run this thread soon after it wakes and for short stretches (a short slice; Linux 6.12 and newer;
    // older ones ignore it). It takes no more than its fair share of the processor by that, and needs no privilege.
    static void intentpm_prefer_latency(uint64_t slice_ns) {
        struct intentpm_sched_attr attr;
        memset(&attr, 0, sizeof attr);
        if (syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0) != 0 || attr.policy != 0) return;
        attr.size = sizeof attr;
        attr.flags = 0;
        attr.runtime_ns = slice_ns;
        syscall(SYS_sched_setattr, 0, &attr, 0);
    }
    """
    void intentpm_prefer_latency(uint64_t slice_ns) nogil


cdef inline void set_timer(int fd, int64_t at_ns) noexcept nogil:
    """Has a timer descriptor fire once, at ``at_ns`` of CLOCK_MONOTONIC; at once if that is past. A later call moves it."""
    cdef itimerspec timing
    memset(&timing, 0, sizeof(timing))
    timing.it_value.tv_sec = at_ns // 1000000000
    timing.it_value.tv_nsec = at_ns % 1000000000
    timerfd_settime(fd, TFD_TIMER_ABSTIME, &timing, NULL)
