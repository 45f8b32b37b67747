"""Latency, bandwidth and disorder of a simulated network; ``sim_links.pxd`` states what they guarantee."""

from intentpm.foundation.deadlines import wait_s

from intentpm.transports.sim_time cimport random_ns, random_share


cdef class Links:
    """``size`` ranks, each with a link out and a link in. model: NetworkModel."""

    def __init__(self, uint32_t size, model):
        self._size = size
        self.latency_ns = wait_s(model.latency_us, "latency_us") * 1e3
        self._ns_per_byte = 1.0 / model.bandwidth_gbytes_per_s
        self._message_ns = wait_s(model.message_us, "message_us") * 1e3
        self._jitter_ns = wait_s(model.jitter_us, "jitter_us") * 1e3
        self._slow_share = model.slow_share
        self._slow_ns = wait_s(model.slow_us, "slow_us") * 1e3
        self._fifo = model.fifo
        self._egress_free.resize(size, 0)
        self.ingress_free.resize(size, 0)
        self.silent.resize(size, 0)
        self.cut.resize(<size_t>size * size, 0)
        self._last_arrival.resize(<size_t>size * size, 0)
        self._kind_messages.resize(<size_t>size * 256, 0)
        self._kind_bytes.resize(<size_t>size * 256, 0)

    def traffic(self) -> dict:
        """Per message id: (messages, bytes) sent, one entry per rank each."""
        found = {}
        for message_id in range(256):
            messages = [self._kind_messages[<size_t>rank * 256 + message_id] for rank in range(self._size)]
            if any(messages):
                found[message_id] = (
                    messages, [self._kind_bytes[<size_t>rank * 256 + message_id] for rank in range(self._size)])
        return found

    cdef void count(self, uint32_t source, uint8_t message_id, size_t size_bytes) noexcept nogil:
        self._kind_messages[<size_t>source * 256 + message_id] += 1
        self._kind_bytes[<size_t>source * 256 + message_id] += size_bytes

    cdef int64_t arrival_ns(
            self, int64_t now, uint64_t* random_state, uint32_t source, uint32_t destination, size_t size_bytes,
            int64_t delay_ns) noexcept nogil:
        cdef int64_t at = max(now, self._egress_free[source])
        cdef size_t way = <size_t>source * self._size + destination
        at += <int64_t>(self._message_ns + size_bytes * self._ns_per_byte)
        self._egress_free[source] = at
        at += <int64_t>self.latency_ns + random_ns(random_state, self._jitter_ns) + delay_ns
        if self._slow_share > 0 and random_share(random_state) < self._slow_share:
            at += random_ns(random_state, self._slow_ns)
        if self._fifo:
            at = max(at, self._last_arrival[way])
        self._last_arrival[way] = max(at, self._last_arrival[way])
        return at

    cdef int64_t passed_ns(self, int64_t now, uint32_t destination, size_t size_bytes) noexcept nogil:
        cdef int64_t at = max(now, self.ingress_free[destination])
        at += <int64_t>(self._message_ns + size_bytes * self._ns_per_byte)
        self.ingress_free[destination] = at
        return at

    cdef int64_t last_arrival_ns(self, uint32_t source, uint32_t destination) noexcept nogil:
        return self._last_arrival[<size_t>source * self._size + destination]

    cdef bint are_cut(self, uint32_t source, uint32_t destination) noexcept nogil:
        return self.silent[source] or self.silent[destination] or self.cut[<size_t>source * self._size + destination]
