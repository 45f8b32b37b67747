// What a table's optimiser is to those who apply it: a kernel and its numbers. The kernels are in optimiser_kernels.hpp.
#pragma once

#include <cstddef>

namespace intentpm {

enum WeightDecay : int { DECAY_NONE, DECAY_L2, DECAY_DECOUPLED };

struct RowOptimiser;

// One step on one row, which lies here as weights and state. gradient: as many items, of the dtype, as the weights.
typedef void (*row_step_fn)(void *row, const void *gradient, size_t items, const RowOptimiser *optimiser, double lr);

struct RowOptimiser {
    row_step_fn step;
    size_t state_offset;  // of the state, from the beginning of the row, in bytes
    double lr;            // of calls that name none
    double eps;
    double beta1, beta2;
    double log_beta1, log_beta2;  // minus infinity for a beta of 0
    double weight_decay;
    WeightDecay decay;
    double max_norm, clip_value, clip_norm;  // infinite: no limit
};

}  // namespace intentpm
