# temporary harness
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport malloc, free
from libc.string cimport memset
from posix.unistd cimport usleep
from intentpm.transports.base cimport *
cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
    int poll(pollfd* waited, unsigned long count, int timeout_ms)
    enum: POLLIN

cdef struct State:
    int64_t received
    int64_t done
    int64_t failed
    int64_t lost
    int64_t misaligned
    bint keep

cdef class Probe:
    cdef Transport t
    cdef State s
    cdef object messages, losses
    cdef object keepalive
    def __init__(self, Transport t, keep=True):
        self.t = t; self.messages = []; self.losses = []; self.keepalive = []
        memset(&self.s, 0, sizeof(State))
        self.s.keep = keep
        t.context = <void*>self
        t.on_message = _on_message
        t.on_lost = _on_lost
    @property
    def stats(self): return self.s
    @property
    def messages(self): return self.messages
    @property
    def losses(self): return self.losses
    def send(self, uint32_t dest, uint8_t mid, bytes header, pieces):
        cdef Piece* p = <Piece*>malloc(sizeof(Piece) * max(1, len(pieces)))
        cdef const unsigned char[::1] v
        cdef int i = 0
        for x in pieces:
            v = x
            p[i].data = <const char*>&v[0] if v.shape[0] else NULL; p[i].size_bytes = v.shape[0]; p[i].memory = HOST_MEMORY
            i += 1
        self.keepalive.append(pieces)
        cdef SendStatus st
        cdef const char* h = header
        cdef size_t hn = len(header)
        cdef size_t n = len(pieces)
        with nogil:
            st = self.t.send(dest, mid, h, hn, p, n, _done, <void*>&self.s)
        free(p)
        return <int>st
    def progress(self):
        cdef int r
        with nogil: r = self.t.progress()
        return r
    def run(self, double seconds, int64_t until_received=-1, int64_t until_done=-1, int64_t until_lost=-1, bint sleep=True):
        cdef int64_t end
        cdef int idle = 0
        cdef pollfd pf
        with nogil:
            end = self.t.now_ns() + <int64_t>(seconds * 1e9)
            while self.t.now_ns() < end:
                if (until_received >= 0 and self.s.received >= until_received): break
                if (until_done >= 0 and self.s.done >= until_done): break
                if (until_lost >= 0 and self.s.lost >= until_lost): break
                if self.t.progress(): idle = 0
                else:
                    idle += 1
                    if sleep and idle > 100 and self.t.arm():
                        pf.fd = self.t.event_fd(); pf.events = POLLIN
                        poll(&pf, 1, <int>((end - self.t.now_ns()) // 1000000) + 1)
        return self.s
    def alive(self, r): return self.t.is_alive(r)
    def expect_close(self, r): self.t.expect_close(r)
    def drop(self, r, bytes why): self.t.drop(r, why)
    def backlog(self, r): return self.t.backlog_bytes(r)
    def allocate(self, n): return <size_t>self.t.allocate(n)
    def release(self, size_t p, n): self.t.release(<char*>p, n)
    def cost(self, int n):
        cdef int64_t a, b, c
        cdef int i
        with nogil:
            a = self.t.now_ns()
            for i in range(n): self.t.progress()
            b = self.t.now_ns()
            for i in range(n): self.t.arm()
            c = self.t.now_ns()
        return (b - a) / n, (c - b) / n
    def pingpong(self, uint32_t peer, size_t size, int64_t n, bint first, bint sleep=False, int gap_us=0):
        cdef Piece p
        cdef char* buf = self.t.allocate(max(size, 8))
        memset(buf, 1, size)
        p.data = buf; p.size_bytes = size; p.memory = HOST_MEMORY
        cdef int64_t i, start, target = self.s.received, t0
        cdef int idle
        cdef pollfd pf
        cdef bint keep = self.s.keep
        self.s.keep = False
        lat = []
        with nogil:
            start = self.t.now_ns()
            for i in range(n):
                if first:
                    if gap_us: usleep(gap_us)
                    t0 = self.t.now_ns() if gap_us else 0
                    self.t.send(peer, 1, NULL, 0, &p, 1, _done, <void*>&self.s)
                target += 1
                idle = 0
                while self.s.received < target and self.s.lost == 0:
                    if self.t.progress() == 0:
                        idle += 1
                        if sleep and idle > 200 and self.t.arm():
                            pf.fd = self.t.event_fd(); pf.events = POLLIN
                            poll(&pf, 1, 5000)
                            idle = 0
                    else: idle = 0
                if gap_us and first:
                    t0 = self.t.now_ns() - t0
                    with gil: lat.append(t0)
                if not first:
                    self.t.send(peer, 1, NULL, 0, &p, 1, _done, <void*>&self.s)
            start = self.t.now_ns() - start
        self.s.keep = keep
        return lat if gap_us else start / n / 2.0
    def stream(self, uint32_t peer, size_t size, int64_t n, int window, bint first):
        cdef Piece p
        cdef char* buf = self.t.allocate(max(size, 8))
        memset(buf, 1, size)
        p.data = buf; p.size_bytes = size; p.memory = HOST_MEMORY
        cdef int64_t i = 0, start, r0 = self.s.received, d0 = self.s.done
        cdef bint keep = self.s.keep
        self.s.keep = False
        with nogil:
            start = self.t.now_ns()
            if first:
                while self.s.done - d0 < n and self.s.lost == 0:
                    while i < n and i - (self.s.done - d0) < window:
                        self.t.send(peer, 1, NULL, 0, &p, 1, _done, <void*>&self.s)
                        i += 1
                    self.t.progress()
                while self.s.received == r0 and self.s.lost == 0: self.t.progress()
            else:
                while self.s.received - r0 < n and self.s.lost == 0: self.t.progress()
                p.size_bytes = 8
                self.t.send(peer, 1, NULL, 0, &p, 1, _done, <void*>&self.s)
            start = self.t.now_ns() - start
        self.s.keep = keep
        return size * n / (start / 1e9) / 1e9

cdef void _done(void* arg, int status) noexcept nogil:
    cdef State* s = <State*>arg
    s.done += 1
    if status: s.failed += 1

cdef void _on_message(void* ctx, uint32_t source, uint8_t mid, const char* h, size_t hn, const char* b, size_t bn) noexcept nogil:
    (<Probe>ctx).s.received = (<Probe>ctx).s.received + 1 if False else (<Probe>ctx).s.received
    _count(&(<Probe>ctx).s, <size_t>b)
    if (<Probe>ctx).s.keep:
        with gil:
            (<Probe>ctx).messages.append((source, mid, h[:hn], b[:bn]))
cdef void _count(State* s, size_t b) noexcept nogil:
    s.received += 1
    if b % 8: s.misaligned += 1
cdef void _lose(State* s) noexcept nogil:
    s.lost += 1
cdef void _on_lost(void* ctx, uint32_t rank, const char* why) noexcept nogil:
    _lose(&(<Probe>ctx).s)
    with gil:
        (<Probe>ctx).losses.append((rank, why.decode()))
