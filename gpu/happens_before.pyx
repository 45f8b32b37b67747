"""Which work surely precedes which; ``happens_before.pxd`` is the contract."""

from libc.stdint cimport uint64_t


cdef inline void _join(Moment& moment, const Moment& other) noexcept nogil:
    cdef size_t i
    if moment.size() < other.size():
        moment.resize(other.size())
    for i in range(other.size()):
        moment[i] = max(moment[i], other[i])


cdef inline bint _is_past(const Moment& moment, unsigned stream, uint64_t number) noexcept nogil:
    return number == 0 or (stream < moment.size() and moment[stream] >= number)


cdef bint _reads_are_past(const Moment& moment, const Uses* uses) noexcept nogil:
    cdef size_t stream
    for stream in range(uses.read.size()):
        if not _is_past(moment, <unsigned>stream, uses.read[stream]):
            return False
    return True


cdef class HappensBefore:
    cdef unsigned add_stream(self) noexcept nogil:
        self.streams.resize(self.streams.size() + 1)
        self.streams.back().resize(self.streams.size())
        return <unsigned>self.streams.size() - 1

    cdef void begin(self, unsigned stream) noexcept nogil:
        _join(self.streams[stream], self.host)
        self.streams[stream][stream] += 1

    cdef void after(self, unsigned stream, const Moment& moment) noexcept nogil:
        _join(self.streams[stream], moment)

    cdef void host_after(self, const Moment& moment) noexcept nogil:
        _join(self.host, moment)

    cdef bint reads(self, unsigned stream, Uses* uses) noexcept nogil:
        cdef bint in_order = _is_past(self.streams[stream], uses.writer, uses.written)
        if uses.read.size() <= stream:
            uses.read.resize(stream + 1)
        uses.read[stream] = self.streams[stream][stream]
        return in_order

    cdef bint writes(self, unsigned stream, Uses* uses) noexcept nogil:
        cdef bint in_order = (
            _is_past(self.streams[stream], uses.writer, uses.written) and _reads_are_past(self.streams[stream], uses))
        uses.writer = stream
        uses.written = self.streams[stream][stream]
        uses.read.clear()
        return in_order

    cdef bint host_may_read(self, const Uses* uses) noexcept nogil:
        return _is_past(self.host, uses.writer, uses.written)

    cdef bint host_may_write(self, const Uses* uses) noexcept nogil:
        return _is_past(self.host, uses.writer, uses.written) and _reads_are_past(self.host, uses)
