"""Planted defects, for the tests of the tests: each must be found by the random programs of ``tests/protocol``.

None is planted unless a test asks for it. They are looked at in cold places only, never per key:

    if is_planted(MUTATION_WRITES_NOT_SETTLED):
        return

To add one: a bit here, its name in ``mutations.pyx``, and the line that breaks the code. The tests take it from there.
"""

from libc.stdint cimport uint32_t


cdef enum Mutation:
    MUTATION_WRITES_NOT_SETTLED = 1 << 0     # a worker does not wait for its own asynchronous writes before it reads


cdef uint32_t planted            # set while no other thread runs


cdef inline bint is_planted(Mutation mutation) noexcept nogil:
    return planted & mutation != 0
