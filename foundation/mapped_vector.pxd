"""Cython name of ``mapped_vector.hpp``: as libcpp.vector, as far as it is used."""

cdef extern from "foundation/mapped_vector.hpp" namespace "intentpm" nogil:
    cdef cppclass mapped_vector[T]:
        cppclass iterator:
            iterator operator+(size_t)

        T& operator[](size_t) noexcept
        iterator begin() noexcept
        iterator end() noexcept
        T* data() noexcept
        size_t size() noexcept
        bint empty() noexcept
        void push_back(const T&) noexcept
        void insert(iterator, iterator, iterator) noexcept
        void resize(size_t) noexcept
        void clear() noexcept
        void swap(mapped_vector[T]&) noexcept
