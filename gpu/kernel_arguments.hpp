// What every kernel of kernels.cu is given, and what those fill in who launch it. Compiled by NVRTC, which has no standard
// library, and by the host's compiler.
#pragma once

namespace intentpm {
namespace gpu {

// In the order of RowDtype (foundation/primitives.hpp) and of Table.DTYPES.
enum Dtype : int { DTYPE_FLOAT32, DTYPE_FLOAT64, DTYPE_FLOAT16, DTYPE_BFLOAT16, DTYPE_INT32, DTYPE_INT64, DTYPES };

// In the order of RowOptimiser.rule (runtime/optimisers.py).
enum Rule : int { RULE_SGD, RULE_ADAGRAD, RULE_ROWWISE_ADAGRAD, RULE_ADAM, RULE_PARTIAL_ROWWISE_ADAM, RULES };

enum Decay : int { NO_DECAY, L2_DECAY, DECOUPLED_DECAY };

constexpr int BLOCK_THREADS = 256;
constexpr int WARP_LANES = 32;
constexpr int ROWS_AT_ONCE = 4;  // that a group of lanes has under way together

// The numbers of a row optimiser, as RowOptimiser (runtime/_native/row_optimiser.hpp) has them.
struct StepNumbers {
    unsigned long long state_offset;  // of the state, from the beginning of the row, in bytes
    double lr, eps, beta1, beta2, log_beta1, log_beta2, weight_decay, max_norm, clip_value, clip_norm;
    int decay;
};

// A batch: row i of it, i in [0, count), is the row of the slab in slot slots[i]; where that is negative, no kernel touches it.
// The rows of the batch lie one after the other, row_bytes each.
struct RowBatch {
    char *slab;
    long long stride_bytes;  // from one row of the slab to the next
    const int *slots;
    long long count;
    char *rows;
    unsigned row_bytes;      // of what is moved, or of the weights
    unsigned items;          // of the weights
    unsigned lanes;          // that share a row: a power of two, at most WARP_LANES
    // Where rows may come twice. One claim per slot of the slab, -1 between batches; one mark per row of the batch, 0 between
    // batches; one sum per row of the batch, of items numbers in the type that the dtype is computed in.
    int *claims;
    int *marks;
    char *sums;
    // Of the directory: keys -> slots.
    const long long *keys;
    int *directory;
    StepNumbers step;
};

}  // namespace gpu
}  // namespace intentpm
