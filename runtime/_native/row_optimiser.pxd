"""A table's optimiser as those see it who apply it; ``row_optimiser.hpp`` says what the fields are."""

from libc.stdint cimport uint32_t

cdef extern from "runtime/_native/row_optimiser.hpp" namespace "intentpm" nogil:
    ctypedef enum WeightDecay "intentpm::WeightDecay":
        DECAY_NONE "intentpm::DECAY_NONE"
        DECAY_L2 "intentpm::DECAY_L2"
        DECAY_DECOUPLED "intentpm::DECAY_DECOUPLED"

    cdef struct RowOptimiser "intentpm::RowOptimiser":
        void (*step)(void* row, const void* gradient, size_t items, const RowOptimiser* optimiser, double lr) noexcept nogil
        void (*keep)(
            void* row, void* kept, const void* gradient, size_t items, const RowOptimiser* optimiser,
            double lr) noexcept nogil
        void (*take)(void* row, const void* kept, size_t items, const RowOptimiser* optimiser) noexcept nogil
        void (*show)(void* row, const void* kept, size_t items, const RowOptimiser* optimiser) noexcept nogil
        size_t state_offset
        size_t real_bytes
        size_t kept_bytes
        size_t gradient_bytes
        bint keeps_moments
        bint blocks_are_steps
        bint order_matters
        bint by_calls
        double lr
        double eps
        double beta1
        double beta2
        WeightDecay decay
        double weight_decay
        double max_norm
        double clip_value
        double clip_norm

    void begin_kept(void* kept, const RowOptimiser* optimiser) noexcept
    void forget_weights(void* kept, size_t items, const RowOptimiser* optimiser) noexcept
    const void* single_gradient(const void* kept, const RowOptimiser* optimiser) noexcept
    void take_gradient(void* row, const void* single, size_t items, const RowOptimiser* optimiser) noexcept
    size_t short_bytes(const RowOptimiser* optimiser) noexcept
    void shorten_row(void* row, size_t items, const RowOptimiser* optimiser) noexcept
    void lengthen_row(void* row, size_t items, const RowOptimiser* optimiser) noexcept
    uint32_t kept_steps(const void* kept, const RowOptimiser* optimiser) noexcept
    void recount_steps(void* kept, const RowOptimiser* optimiser) noexcept
