"""Cython names of ``primitives.hpp``."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "foundation/primitives.hpp" namespace "intentpm" nogil:
    uint32_t load_acquire "intentpm::load_acquire"(const uint32_t* p) noexcept
    int32_t load_acquire_i32 "intentpm::load_acquire"(const int32_t* p) noexcept
    uint8_t load_acquire_u8 "intentpm::load_acquire"(const uint8_t* p) noexcept
    void* load_acquire_pointer "intentpm::load_acquire"(void** p) noexcept
    uint32_t load_relaxed "intentpm::load_relaxed"(const uint32_t* p) noexcept
    int32_t load_relaxed_i32 "intentpm::load_relaxed"(const int32_t* p) noexcept
    uint64_t load_relaxed_u64 "intentpm::load_relaxed"(const uint64_t* p) noexcept
    uint16_t load_relaxed_u16 "intentpm::load_relaxed"(const uint16_t* p) noexcept
    void store_release "intentpm::store_release"(uint32_t* p, uint32_t v) noexcept
    void store_release_i32 "intentpm::store_release"(int32_t* p, int32_t v) noexcept
    void store_release_u8 "intentpm::store_release"(uint8_t* p, uint8_t v) noexcept
    void store_relaxed "intentpm::store_relaxed"(uint32_t* p, uint32_t v) noexcept
    void store_relaxed_i32 "intentpm::store_relaxed"(int32_t* p, int32_t v) noexcept
    void store_relaxed_u64 "intentpm::store_relaxed"(uint64_t* p, uint64_t v) noexcept
    void store_relaxed_u16 "intentpm::store_relaxed"(uint16_t* p, uint16_t v) noexcept
    uint32_t add_relaxed "intentpm::add_relaxed"(uint32_t* p, uint32_t v) noexcept
    uint32_t add_release "intentpm::add_release"(uint32_t* p, uint32_t v) noexcept
    bint cas_acquire(uint32_t* p, uint32_t expected, uint32_t desired) noexcept
    bint cas_release_i32 "intentpm::cas_release"(int32_t* p, int32_t* expected, int32_t desired) noexcept
    int32_t exchange_acquire_i32 "intentpm::exchange_acquire"(int32_t* p, int32_t v) noexcept
    uint32_t exchange_acquire "intentpm::exchange_acquire"(uint32_t* p, uint32_t v) noexcept
    uint64_t load_acquire_u64 "intentpm::load_acquire"(const uint64_t* p) noexcept
    int64_t load_acquire_i64 "intentpm::load_acquire"(const int64_t* p) noexcept
    int64_t load_seq_cst_i64 "intentpm::load_seq_cst"(const int64_t* p) noexcept
    int64_t exchange_seq_cst_i64 "intentpm::exchange_seq_cst"(int64_t* p, int64_t v) noexcept
    int64_t load_relaxed_i64 "intentpm::load_relaxed"(const int64_t* p) noexcept
    int64_t add_relaxed_i64 "intentpm::add_relaxed"(int64_t* p, int64_t v) noexcept
    void store_relaxed_i64 "intentpm::store_relaxed"(int64_t* p, int64_t v) noexcept
    void store_release_i64 "intentpm::store_release"(int64_t* p, int64_t v) noexcept
    void store_release_pointer "intentpm::store_release"(void** p, void* v) noexcept
    const bint optimistic_reads
    void fence_acquire() noexcept
    void fence_release() noexcept
    void fence_seq_cst() noexcept
    void pause_cpu() noexcept
    void let_pass() noexcept
    void back_off(unsigned int& turns) noexcept
    void prefetch_read(const void* p) noexcept
    void prefetch_write(const void* p) noexcept

    enum: ROW_DTYPES
    ctypedef void (*row_add_fn)(void* row, const void* delta, size_t items) noexcept nogil
    row_add_fn row_add_for(int dtype) noexcept
    ctypedef double (*row_square_fn)(const void* row, size_t items) noexcept nogil
    row_square_fn row_square_for(int dtype) noexcept
    void copy_row(void* to, const void* source, size_t row_bytes) noexcept

    # Return types that carry an attribute, for which Cython has no words. Of a function that is compiled for each generation
    # of processors, with all that it calls inside it; and of one that is never put inside another.
    ctypedef void void_per_cpu "INTENTPM_PER_CPU void"
    ctypedef void void_apart "INTENTPM_APART void"
