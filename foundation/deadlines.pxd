"""What ``wait_ns`` (deadlines.py) gives at most, for code without the GIL. A clock of nanoseconds can be added to it."""

from libc.stdint cimport int64_t


cdef extern from *:
    """
    static const int64_t intentpm_forever_ns = 1000000000000000000;
    """
    const int64_t FOREVER_NS "intentpm_forever_ns"
