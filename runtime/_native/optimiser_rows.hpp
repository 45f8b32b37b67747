// A row as the kernels of optimisers see it (optimiser_kernels.hpp): its numbers, what becomes of a gradient before it is used,
// and the kept steps of a replica. Numbers are computed and kept as state in Real: double for float64 weights, float for all
// others.
//
// A kept row (kept.pxd) is a block of steps that the owner still has to take. Its sections, of Real:
//
//   off      [items]       what they take off the weights; of the Adagrads before it is divided by sqrt(G) + eps
//   moments  [items]       of the Adams: A = sum of beta1^(n-i) (1-beta1) g_i
//   squares  [items or 1]  of the Adagrads: Q = sum of g_i^2; of the Adams: B = sum of beta2^(n-i) (1-beta2) g_i^2
//   keep     [1]           what decoupled decay leaves of the weights; off is what is taken from that. OVERWRITTEN: a value was
//                          set after the last step, so none of them touches the weights
//   steps    [1]           n, a uint32
//
// All zero but for keep, which is 1: no step. While it is kept, the gradient of its first step lies behind it (row_optimiser.hpp).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "foundation/primitives.hpp"
#include "runtime/_native/row_optimiser.hpp"
#include "runtime/_native/stochastic_rounding.hpp"

namespace intentpm {
namespace steps {

// -- dtypes of weights ----------------------------------------------------------------------------------------------------

struct Float32 {
    typedef float Item;
    typedef float Real;
    static Real load(Item v) { return v; }
    static Item store(Real v) { return v; }
};
struct Float64 {
    typedef double Item;
    typedef double Real;
    static Real load(Item v) { return v; }
    static Item store(Real v) { return v; }
};
struct Float16 {
    typedef uint16_t Item;
    typedef float Real;
    static Item store_at_random(Real v, uint32_t bits) { return float16_at_random(v, bits); }
    static Real load(Item v) { return float_of_float16(v); }
    static Item store(Real v) { return float16_of_float(v); }
};
struct Bfloat16 {
    typedef uint16_t Item;
    typedef float Real;
    static Item store_at_random(Real v, uint32_t bits) { return bfloat16_at_random(v, bits); }
    static Real load(Item v) { return float_of_bfloat16(v); }
    static Item store(Real v) { return bfloat16_of_float(v); }
};

// Weights of 16 bits that are rounded at random. What this needs lies behind the state of the rule: so many numbers.
template <typename Dtype, size_t PER_ITEM, size_t PER_ROW> struct AtRandom : Dtype {
    static constexpr size_t numbers_of_state(size_t items) { return PER_ITEM * items + PER_ROW; }
};
template <typename Dtype> constexpr bool IS_AT_RANDOM = false;
template <typename Dtype, size_t PER_ITEM, size_t PER_ROW> constexpr bool IS_AT_RANDOM<AtRandom<Dtype, PER_ITEM, PER_ROW>> = true;

// -- counts of steps, which lie among Reals ------------------------------------------------------------------------------

inline uint32_t steps_at(const void *count) {
    uint32_t n;
    std::memcpy(&n, count, sizeof n);
    return n;
}

inline uint32_t count_steps(void *count, uint32_t more) {
    uint32_t n = steps_at(count);
    n = more > std::numeric_limits<uint32_t>::max() - n ? std::numeric_limits<uint32_t>::max() : n + more;
    std::memcpy(count, &n, sizeof n);
    return n;
}

inline uint32_t count_step(void *count) { return count_steps(count, 1); }

// -- the row --------------------------------------------------------------------------------------------------------------

constexpr size_t LANES = 16;  // partial sums, so that one vector instruction adds several

template <typename Real, typename At> inline Real sum_of_squares_at(size_t items, At at) {
    Real lanes[LANES] = {};
    size_t i = 0;
    for (; i + LANES <= items; i += LANES)
        for (size_t lane = 0; lane < LANES; ++lane) {
            Real v = at(i + lane);
            lanes[lane] += v * v;
        }
    for (size_t lane = 0; i < items; ++i, ++lane) {
        Real v = at(i);
        lanes[lane] += v * v;
    }
    Real sum = 0;
    for (size_t lane = 0; lane < LANES; ++lane) sum += lanes[lane];
    return sum;
}

// A row that is stepped. PLAIN: the gradient as it came, no decay, no largest norm.
template <typename Dtype, bool PLAIN> struct Row {
    typedef typename Dtype::Item Item;
    typedef typename Dtype::Real Real;

    Item *__restrict weights;
    const Item *__restrict gradient;
    Real *__restrict state;
    size_t items;
    Real lr;
    Real clip_value, clip_scale, l2, keep;  // keep: what decoupled decay leaves of a weight
    Real max_norm;
    RandomBits bits;  // with which weights are rounded at random

    Row(void *row, const void *given, size_t count, const RowOptimiser *optimiser, double rate)
        : weights(static_cast<Item *>(row)), gradient(static_cast<const Item *>(given)),
          state(reinterpret_cast<Real *>(static_cast<char *>(row) + optimiser->state_offset)), items(count), lr(Real(rate)) {
        if constexpr (PLAIN) return;
        clip_value = Real(optimiser->clip_value);
        l2 = optimiser->decay == DECAY_L2 ? Real(optimiser->weight_decay) : Real(0);
        keep = optimiser->decay == DECAY_DECOUPLED ? Real(1 - rate * optimiser->weight_decay) : Real(1);
        max_norm = Real(optimiser->max_norm);
        clip_scale = scale_to(Real(optimiser->clip_norm), [this](size_t i) { return clipped(i); });
        draw_bits();
    }

    // For a block of steps: no gradient is looked at.
    Row(void *row, size_t count, const RowOptimiser *optimiser, Real kept)
        : weights(static_cast<Item *>(row)), gradient(nullptr),
          state(reinterpret_cast<Real *>(static_cast<char *>(row) + optimiser->state_offset)), items(count), lr(0) {
        if constexpr (PLAIN) return;
        const bool overwritten = kept == OVERWRITTEN<Real>;
        keep = overwritten ? Real(1) : kept;
        max_norm = overwritten ? std::numeric_limits<Real>::infinity() : Real(optimiser->max_norm);
        draw_bits();
    }

    Real clipped(size_t i) const {
        Real g = Dtype::load(gradient[i]);
        return g > clip_value ? clip_value : g < -clip_value ? -clip_value : g;  // NaN stays
    }

    Real g(size_t i) const {
        if constexpr (PLAIN) return Dtype::load(gradient[i]);
        return clipped(i) * clip_scale + l2 * Dtype::load(weights[i]);
    }

    void take_off(size_t i, Real step) {
        if constexpr (PLAIN) weights[i] = Dtype::store(Dtype::load(weights[i]) - step);
        else weights[i] = rounded(Dtype::load(weights[i]) * keep - step, i);
    }

    Real mean_square() const {
        return sum_of_squares_at<Real>(items, [this](size_t i) { return g(i); }) / Real(items);
    }

    void limit_norm() {
        if constexpr (PLAIN) return;
        const Real scale = scale_to(max_norm, [this](size_t i) { return Dtype::load(weights[i]); });
        if (scale == Real(1)) return;
        for (size_t i = 0; i < items; ++i) weights[i] = rounded(Dtype::load(weights[i]) * scale, items + i);
    }

  private:
    void draw_bits() {
        if constexpr (IS_AT_RANDOM<Dtype>) bits.draw(state + Dtype::numbers_of_state(items));
    }

    // number: another for each rounding of a step.
    Item rounded(Real weight, size_t number) const {
        if constexpr (IS_AT_RANDOM<Dtype>) return Dtype::store_at_random(weight, bits.at(number));
        else return Dtype::store(weight);
    }

    template <typename At> Real scale_to(Real largest, At at) const {
        if (largest == std::numeric_limits<Real>::infinity()) return 1;
        const Real norm = std::sqrt(sum_of_squares_at<Real>(items, at));
        return norm > largest ? largest / norm : Real(1);
    }
};

// -- the kept row of a replica ----------------------------------------------------------------------------------------------

inline size_t real_bytes_of(int dtype) { return dtype == ROW_FLOAT64 ? sizeof(double) : sizeof(float); }

inline size_t item_bytes_of(int dtype) {
    return dtype == ROW_FLOAT16 || dtype == ROW_BFLOAT16 ? sizeof(uint16_t) : real_bytes_of(dtype);
}

// Where the sections of a kept row are, of the rule that has it.
template <typename Real> struct KeptRow {
    Real *__restrict off;
    Real *__restrict moments;
    Real *__restrict squares;
    Real *keep;
    void *steps;

    KeptRow(void *row, size_t items, const RowOptimiser *optimiser) {
        off = static_cast<Real *>(row);
        moments = off + items;
        squares = moments + (optimiser->keeps_moments ? items : 0);
        keep = reinterpret_cast<Real *>(static_cast<char *>(row) + optimiser->kept_bytes) - 2;
        steps = keep + 1;
    }
};

// Where a step goes besides the row: into the kept row of a replica, or nowhere.
template <typename Dtype, bool PLAIN> struct Keeping {
    typedef typename Dtype::Real Real;
    KeptRow<Real> kept;
    Real decay;  // of the weights by this step

    Keeping(void *row, const Row<Dtype, PLAIN> &stepped, const RowOptimiser *optimiser)
        : kept(row, stepped.items, optimiser), decay(PLAIN ? Real(1) : stepped.keep) {
        count_step(kept.steps);
        if constexpr (!PLAIN) *kept.keep = *kept.keep == OVERWRITTEN<Real> ? decay : *kept.keep * decay;
    }
    void off(size_t i, Real step) {
        if constexpr (PLAIN) kept.off[i] += step;
        else kept.off[i] = kept.off[i] * decay + step;
    }
    void moment(size_t i, Real beta, Real part) { kept.moments[i] = beta * kept.moments[i] + part; }
    void square(size_t i, Real part) { kept.squares[i] += part; }
    void square(size_t i, Real beta, Real part) { kept.squares[i] = beta * kept.squares[i] + part; }
};
template <typename Real> struct NotKeeping {
    void off(size_t, Real) {}
    void moment(size_t, Real, Real) {}
    void square(size_t, Real) {}
    void square(size_t, Real, Real) {}
};

}  // namespace steps
}  // namespace intentpm
