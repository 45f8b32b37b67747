// Machine primitives that Cython has no words for: atomics on plain arrays, prefetch, pause, and the arithmetic on one row.
// Nothing here knows about keys, tables or ranks.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace intentpm {

// -- atomics on plain memory (arrays come from mmap and are shared between threads) ---------------------------------------

template <typename T> inline T load_acquire(const T *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
template <typename T> inline T load_relaxed(const T *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
template <typename T> inline void store_release(T *p, std::type_identity_t<T> v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
template <typename T> inline void store_relaxed(T *p, std::type_identity_t<T> v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
template <typename T> inline T add_relaxed(T *p, std::type_identity_t<T> v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
template <typename T> inline T add_release(T *p, std::type_identity_t<T> v) { return __atomic_fetch_add(p, v, __ATOMIC_RELEASE); }
inline bool cas_acquire(uint32_t *p, uint32_t expected, uint32_t desired) {
    return __atomic_compare_exchange_n(p, &expected, desired, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

inline bool cas_release(int32_t *p, int32_t *expected, int32_t desired) {
    return __atomic_compare_exchange_n(p, expected, desired, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
}
template <typename T> inline T exchange_acquire(T *p, std::type_identity_t<T> v) { return __atomic_exchange_n(p, v, __ATOMIC_ACQ_REL); }

inline int64_t exchange_seq_cst(int64_t *p, int64_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
inline int64_t load_seq_cst(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }

#if defined(__SANITIZE_THREAD__)
#define INTENTPM_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define INTENTPM_TSAN 1
#endif
#endif

// ThreadSanitizer cannot see that a sequence lock discards what it read during a write; under it readers take the lock.
// It does not know fences either; the two of the sequence lock are not needed then.
#if defined(INTENTPM_TSAN)
constexpr bool optimistic_reads = false;
inline void fence_acquire() {}
inline void fence_release() {}
#else
constexpr bool optimistic_reads = true;
inline void fence_acquire() { std::atomic_thread_fence(std::memory_order_acquire); }
inline void fence_release() { std::atomic_thread_fence(std::memory_order_release); }
#endif

// This one orders a store before a later load, which decides about wake-ups and about no data: ThreadSanitizer need not know.
#pragma GCC diagnostic push
#if defined(INTENTPM_TSAN) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wtsan"
#endif
inline void fence_seq_cst() { std::atomic_thread_fence(std::memory_order_seq_cst); }
#pragma GCC diagnostic pop

inline void pause_cpu() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");
#endif
}

// Waiting for another thread's few instructions: pause at first, give the core away when it must have been preempted.
inline void back_off(unsigned &turns) {
    if (++turns < 64) pause_cpu();
    else sched_yield();
}

// About a microsecond: lets another thread get well ahead. Threads that write the same rows in the same order would
// otherwise stay abreast and take every row from each other.
inline void let_pass() {
    for (int i = 0; i < 48; ++i) pause_cpu();
}

// The asm keeps gcc from dropping calls of functions that do nothing but prefetch: it takes them for pure.
inline void prefetch_read(const void *p) { __builtin_prefetch(p, 0, 3); asm volatile(""); }
inline void prefetch_write(const void *p) { __builtin_prefetch(p, 1, 3); asm volatile(""); }

// -- rows -----------------------------------------------------------------------------------------------------------------

// One code per dtype, in the order of Table.DTYPES.
enum RowDtype : int { ROW_FLOAT32, ROW_FLOAT64, ROW_FLOAT16, ROW_BFLOAT16, ROW_INT32, ROW_INT64, ROW_DTYPES };

typedef void (*row_add_fn)(void *row, const void *delta, size_t items);

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(INTENTPM_TSAN) && !defined(__SANITIZE_ADDRESS__)
#define INTENTPM_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define INTENTPM_CLONES
#endif

#define INTENTPM_PER_CPU INTENTPM_CLONES __attribute__((flatten))
#define INTENTPM_APART __attribute__((noinline))

inline float float_from_bits(uint32_t b) { float f; std::memcpy(&f, &b, 4); return f; }
inline uint32_t bits_of_float(float f) { uint32_t b; std::memcpy(&b, &f, 4); return b; }

inline float float_of_bfloat16(uint16_t h) { return float_from_bits(uint32_t(h) << 16); }
inline uint16_t bfloat16_of_float(float f) {  // round to nearest even; NaN stays NaN
    uint32_t b = bits_of_float(f);
    if ((b & 0x7fffffffu) > 0x7f800000u) return uint16_t((b >> 16) | 0x40u);
    return uint16_t((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
}

inline float float_of_float16(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = (h >> 10) & 0x1fu, mantissa = h & 0x3ffu;
    if (exponent == 0x1f) return float_from_bits(sign | 0x7f800000u | (mantissa << 13));
    if (exponent) return float_from_bits(sign | ((exponent + 112u) << 23) | (mantissa << 13));
    float magnitude = float(mantissa) * 5.9604644775390625e-08f;  // subnormal: mantissa * 2^-24, exact
    return sign ? -magnitude : magnitude;
}
inline uint16_t float16_of_float(float f) {  // round to nearest even, as numpy does
    uint32_t b = bits_of_float(f), sign = (b >> 16) & 0x8000u, rest = b & 0x7fffffffu;
    if (rest > 0x7f800000u) return uint16_t(sign | 0x7e00u | ((rest >> 13) & 0x3ffu));
    if (rest >= 0x477ff000u) return uint16_t(sign | 0x7c00u);                     // rounds to infinity
    if (rest < 0x38800000u) {                                                     // subnormal or zero
        float scaled = float_from_bits(rest) * 16777216.0f;                       // units of 2^-24
        uint32_t whole = uint32_t(scaled);
        float part = scaled - float(whole);
        whole += part > 0.5f || (part == 0.5f && (whole & 1u));
        return uint16_t(sign | whole);
    }
    uint32_t rounded = rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u);
    return uint16_t(sign | (rounded >> 13));
}

INTENTPM_CLONES static void add_float32(void *row, const void *delta, size_t items) {
    float *__restrict r = static_cast<float *>(row);
    const float *__restrict d = static_cast<const float *>(delta);
    for (size_t i = 0; i < items; ++i) r[i] += d[i];
}
INTENTPM_CLONES static void add_float64(void *row, const void *delta, size_t items) {
    double *__restrict r = static_cast<double *>(row);
    const double *__restrict d = static_cast<const double *>(delta);
    for (size_t i = 0; i < items; ++i) r[i] += d[i];
}
static void add_float16(void *row, const void *delta, size_t items) {
    uint16_t *r = static_cast<uint16_t *>(row);
    const uint16_t *d = static_cast<const uint16_t *>(delta);
    for (size_t i = 0; i < items; ++i) r[i] = float16_of_float(float_of_float16(r[i]) + float_of_float16(d[i]));
}
static void add_bfloat16(void *row, const void *delta, size_t items) {
    uint16_t *r = static_cast<uint16_t *>(row);
    const uint16_t *d = static_cast<const uint16_t *>(delta);
    for (size_t i = 0; i < items; ++i) r[i] = bfloat16_of_float(float_of_bfloat16(r[i]) + float_of_bfloat16(d[i]));
}
INTENTPM_CLONES static void add_int32(void *row, const void *delta, size_t items) {  // wraps, as numpy does
    uint32_t *__restrict r = static_cast<uint32_t *>(row);
    const uint32_t *__restrict d = static_cast<const uint32_t *>(delta);
    for (size_t i = 0; i < items; ++i) r[i] += d[i];
}
INTENTPM_CLONES static void add_int64(void *row, const void *delta, size_t items) {
    uint64_t *__restrict r = static_cast<uint64_t *>(row);
    const uint64_t *__restrict d = static_cast<const uint64_t *>(delta);
    for (size_t i = 0; i < items; ++i) r[i] += d[i];
}

inline row_add_fn row_add_for(int dtype) {
    static const row_add_fn table[ROW_DTYPES] = {add_float32, add_float64, add_float16, add_bfloat16, add_int32, add_int64};
    return table[dtype];
}

typedef double (*row_square_fn)(const void *row, size_t items);

template <typename T, typename Convert> inline double sum_of_squares(const void *row, size_t items, Convert convert) {
    const T *r = static_cast<const T *>(row);
    double sum = 0.0;
    for (size_t i = 0; i < items; ++i) { double v = convert(r[i]); sum += v * v; }
    return sum;
}
template <typename T> double square_numbers(const void *row, size_t items) {
    return sum_of_squares<T>(row, items, [](T v) { return double(v); });
}
static double square_float16(const void *row, size_t items) {
    return sum_of_squares<uint16_t>(row, items, [](uint16_t h) { return double(float_of_float16(h)); });
}
static double square_bfloat16(const void *row, size_t items) {
    return sum_of_squares<uint16_t>(row, items, [](uint16_t h) { return double(float_of_bfloat16(h)); });
}

inline row_square_fn row_square_for(int dtype) {
    static const row_square_fn table[ROW_DTYPES] = {
        square_numbers<float>, square_numbers<double>, square_float16, square_bfloat16,
        square_numbers<int32_t>, square_numbers<int64_t>};
    return table[dtype];
}

// Copies one row; common lengths become straight vector moves instead of a call.
inline void copy_row(void *to, const void *from, size_t bytes) {
    switch (bytes) {
    case 4: std::memcpy(to, from, 4); return;
    case 8: std::memcpy(to, from, 8); return;
    case 64: std::memcpy(to, from, 64); return;
    case 128: std::memcpy(to, from, 128); return;
    case 256: std::memcpy(to, from, 256); return;
    default: std::memcpy(to, from, bytes); return;
    }
}

}  // namespace intentpm
