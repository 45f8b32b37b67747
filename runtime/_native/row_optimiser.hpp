// What a table's optimiser is to those who apply it: kernels and their numbers. The kernels are in optimiser_kernels.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

namespace intentpm {

enum WeightDecay : int { DECAY_NONE, DECAY_L2, DECAY_DECOUPLED };

struct RowOptimiser;

// On one row, which lies here as weights and state. gradient: as many items, of the dtype, as the weights. A step; a step that is
// kept for the owner besides; a block of kept steps.
typedef void (*row_step_fn)(void *row, const void *gradient, size_t items, const RowOptimiser *optimiser, double lr);
typedef void (*row_keep_fn)(
    void *row, void *kept, const void *gradient, size_t items, const RowOptimiser *optimiser, double lr);
typedef void (*row_take_fn)(void *row, const void *kept, size_t items, const RowOptimiser *optimiser);

struct RowOptimiser {
    row_step_fn step;
    row_keep_fn keep;
    row_take_fn take;
    row_take_fn show;  // as take, of a row whose state has the block already; nullptr: weights never come without their state
    size_t state_offset;  // of the state, from the beginning of the row, in bytes
    size_t real_bytes;    // of a number of the state
    size_t kept_bytes;    // of a block of kept steps: optimiser_rows.hpp
    size_t gradient_bytes;  // of what stands for a block of one step: its gradient and rate; 0: that would not be much shorter
    bool keeps_moments;
    bool blocks_are_steps;  // taken as a block, steps do what they do one by one, but for rounding
    bool order_matters;     // of steps and of what is pushed or set beside them, by more than rounding
    bool by_calls;          // the learning rate brings the correction of the moments' bias
    double lr;            // of calls that name none
    double eps;
    double beta1, beta2;
    double weight_decay;
    WeightDecay decay;
    double max_norm, clip_value, clip_norm;  // infinite: no limit
};

// -- kept rows, whose last two numbers are: what is left of the weights, and how many steps there are ---------------------------

// In place of what is left of the weights: they were overwritten, and no step has come since.
template <typename Real> constexpr Real OVERWRITTEN = -std::numeric_limits<Real>::infinity();

template <typename Real> inline void write_keep(void *kept, const RowOptimiser *optimiser, Real keep) {
    std::memcpy(static_cast<char *>(kept) + optimiser->kept_bytes - 2 * sizeof keep, &keep, sizeof keep);
}

inline void begin_kept(void *kept, const RowOptimiser *optimiser) {
    std::memset(kept, 0, optimiser->kept_bytes);
    if (optimiser->real_bytes == sizeof(float)) write_keep<float>(kept, optimiser, 1);
    else write_keep<double>(kept, optimiser, 1);
}

// The weights are overwritten: what the steps did to them counts no more, what they did to the state does.
inline void forget_weights(void *kept, size_t items, const RowOptimiser *optimiser) {
    std::memset(kept, 0, items * optimiser->real_bytes);
    if (optimiser->real_bytes == sizeof(float)) write_keep(kept, optimiser, OVERWRITTEN<float>);
    else write_keep(kept, optimiser, OVERWRITTEN<double>);
}

inline uint32_t kept_steps(const void *kept, const RowOptimiser *optimiser) {
    uint32_t n;
    std::memcpy(&n, static_cast<const char *>(kept) + optimiser->kept_bytes - optimiser->real_bytes, sizeof n);
    return n;
}

// -- a block of one step: its gradient and, in the last eight bytes, its rate. Behind each block while it is kept -----------------

inline void note_gradient(void *kept, const void *gradient, size_t size_bytes, const RowOptimiser *optimiser, double lr) {
    char *single = static_cast<char *>(kept) + optimiser->kept_bytes;
    std::memcpy(single, gradient, size_bytes);
    std::memcpy(single + optimiser->gradient_bytes - sizeof lr, &lr, sizeof lr);
}

template <typename Real> inline bool is_overwritten(const void *kept, const RowOptimiser *optimiser) {
    Real keep;
    std::memcpy(&keep, static_cast<const char *>(kept) + optimiser->kept_bytes - 2 * sizeof keep, sizeof keep);
    return keep == OVERWRITTEN<Real>;
}

// The gradient that stands for the block; nullptr: it has more steps, or weights were set after its step.
inline const void *single_gradient(const void *kept, const RowOptimiser *optimiser) {
    if (optimiser->gradient_bytes == 0 || kept_steps(kept, optimiser) != 1) return nullptr;
    if (optimiser->real_bytes == sizeof(float) ? is_overwritten<float>(kept, optimiser) : is_overwritten<double>(kept, optimiser))
        return nullptr;
    return static_cast<const char *>(kept) + optimiser->kept_bytes;
}

// The step itself, at the owner.
inline void take_gradient(void *row, const void *single, size_t items, const RowOptimiser *optimiser) {
    double lr;
    std::memcpy(&lr, static_cast<const char *>(single) + optimiser->gradient_bytes - sizeof lr, sizeof lr);
    optimiser->step(row, single, items, optimiser, lr);
}

// -- a short row, which is fetched for one use: the weights, and the mean of the state in place of its first number. Of Adagrad -----

inline size_t short_bytes(const RowOptimiser *optimiser) { return optimiser->state_offset + optimiser->real_bytes; }

template <typename Real> inline void shorten_state(Real *state, size_t items) {
    double sum = 0;
    for (size_t i = 0; i < items; ++i) sum += state[i];
    state[0] = Real(sum / double(items));
}

inline void shorten_row(void *row, size_t items, const RowOptimiser *optimiser) {
    char *state = static_cast<char *>(row) + optimiser->state_offset;
    if (optimiser->real_bytes == sizeof(float)) shorten_state(reinterpret_cast<float *>(state), items);
    else shorten_state(reinterpret_cast<double *>(state), items);
}

// Makes a whole row of it again: each number of the state is the mean.
inline void lengthen_row(void *row, size_t items, const RowOptimiser *optimiser) {
    char *state = static_cast<char *>(row) + optimiser->state_offset;
    for (size_t i = 1; i < items; ++i) std::memcpy(state + i * optimiser->real_bytes, state, optimiser->real_bytes);
}

// A defect, for the tests of the tests.
inline void recount_steps(void *kept, const RowOptimiser *optimiser) {
    const uint32_t n = 2 * kept_steps(kept, optimiser);
    std::memcpy(static_cast<char *>(kept) + optimiser->kept_bytes - optimiser->real_bytes, &n, sizeof n);
}

}  // namespace intentpm
