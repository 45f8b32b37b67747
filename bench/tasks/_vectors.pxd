"""What the compute kernels of the tasks share: sums over rows of float32, and checks of the indices they are given."""

from libc.stdint cimport int32_t


cdef inline float dot(const float* left, const float* right, Py_ssize_t dim) noexcept nogil:
    cdef float total = 0
    cdef Py_ssize_t i
    for i in range(dim):
        total += left[i] * right[i]
    return total


cdef inline void add_scaled(float* to, float scale, const float* values, Py_ssize_t dim) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(dim):
        to[i] += scale * values[i]


cdef inline void subtract(float* values, const float* others, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t n
    for n in range(count):
        values[n] -= others[n]


cdef inline object check_indices(const int32_t* indices, Py_ssize_t count, Py_ssize_t rows, str name):
    """Raises IndexError unless all ``count`` indices are rows."""
    cdef Py_ssize_t n
    cdef bint inside = True
    with nogil:
        for n in range(count):
            inside = inside and 0 <= indices[n] < rows
    if not inside:
        raise IndexError(f"{name} has a value outside 0 to {rows - 1}")
