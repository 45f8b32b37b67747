// One step of each row optimiser on one row, for each dtype that weights can have; without the GIL, in one pass where its rule
// allows. Numbers are computed and kept as state in Real: double for float64 weights, float for all others.
//
//   SGD
//   Adagrad             Duchi, Hazan, Singer: Adaptive subgradient methods, JMLR 12 (2011)
//   RowwiseAdagrad      one accumulator per row: DLRM, and EXACT_ROWWISE_ADAGRAD of FBGEMM
//   Adam                Kingma, Ba: Adam, ICLR 2015; with decoupled decay Loshchilov, Hutter: ICLR 2019
//   PartialRowwiseAdam  one second moment per row: PARTIAL_ROWWISE_ADAM of FBGEMM
//
// Guarantee: the same numbers give the same bits on every processor. Sums have a fixed order (LANES), and products are not
// contracted into sums (-ffp-contract=off). Square roots become vector instructions only with -fno-math-errno.
// Assumption: the caller is the one writer of the row.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "foundation/primitives.hpp"
#include "runtime/_native/row_optimiser.hpp"

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
    static Real load(Item v) { return float_of_float16(v); }
    static Item store(Real v) { return float16_of_float(v); }
};
struct Bfloat16 {
    typedef uint16_t Item;
    typedef float Real;
    static Real load(Item v) { return float_of_bfloat16(v); }
    static Item store(Real v) { return bfloat16_of_float(v); }
};

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

    Row(void *row, const void *given, size_t count, const RowOptimiser *optimiser, double rate)
        : weights(static_cast<Item *>(row)), gradient(static_cast<const Item *>(given)),
          state(reinterpret_cast<Real *>(static_cast<char *>(row) + optimiser->state_offset)), items(count), lr(Real(rate)) {
        if constexpr (PLAIN) return;
        clip_value = Real(optimiser->clip_value);
        l2 = optimiser->decay == DECAY_L2 ? Real(optimiser->weight_decay) : Real(0);
        keep = optimiser->decay == DECAY_DECOUPLED ? Real(1 - rate * optimiser->weight_decay) : Real(1);
        max_norm = Real(optimiser->max_norm);
        clip_scale = scale_to(Real(optimiser->clip_norm), [this](size_t i) { return clipped(i); });
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
        else weights[i] = Dtype::store(Dtype::load(weights[i]) * keep - step);
    }

    Real mean_square() const {
        return sum_of_squares_at<Real>(items, [this](size_t i) { return g(i); }) / Real(items);
    }

    void limit_norm() {
        if constexpr (PLAIN) return;
        const Real scale = scale_to(max_norm, [this](size_t i) { return Dtype::load(weights[i]); });
        if (scale == Real(1)) return;
        for (size_t i = 0; i < items; ++i) weights[i] = Dtype::store(Dtype::load(weights[i]) * scale);
    }

  private:
    template <typename At> Real scale_to(Real largest, At at) const {
        if (largest == std::numeric_limits<Real>::infinity()) return 1;
        const Real norm = std::sqrt(sum_of_squares_at<Real>(items, at));
        return norm > largest ? largest / norm : Real(1);
    }
};

// How much of m and v of a row's n-th step is there: 1 - beta^n.
struct BiasCorrection {
    double first, second;
    BiasCorrection(const RowOptimiser *optimiser, uint32_t n)
        : first(-std::expm1(n * optimiser->log_beta1)), second(-std::expm1(n * optimiser->log_beta2)) {}
};

inline uint32_t next_step(void *count) {
    uint32_t n;
    std::memcpy(&n, count, sizeof n);
    n += n != std::numeric_limits<uint32_t>::max();
    std::memcpy(count, &n, sizeof n);
    return n;
}

// -- rules ----------------------------------------------------------------------------------------------------------------

template <typename Dtype, bool PLAIN> struct Sgd {
    static void step(Row<Dtype, PLAIN> row, const RowOptimiser *) {
        for (size_t i = 0; i < row.items; ++i) row.take_off(i, row.lr * row.g(i));
        row.limit_norm();
    }
};

template <typename Dtype, bool PLAIN> struct Adagrad {
    static void step(Row<Dtype, PLAIN> row, const RowOptimiser *optimiser) {
        typedef typename Dtype::Real Real;
        const Real eps = Real(optimiser->eps);
        for (size_t i = 0; i < row.items; ++i) {
            const Real g = row.g(i);
            const Real sum = row.state[i] + g * g;
            row.state[i] = sum;
            row.take_off(i, row.lr * g / (std::sqrt(sum) + eps));
        }
        row.limit_norm();
    }
};

template <typename Dtype, bool PLAIN> struct RowwiseAdagrad {
    static void step(Row<Dtype, PLAIN> row, const RowOptimiser *optimiser) {
        typedef typename Dtype::Real Real;
        const Real sum = row.state[0] + row.mean_square();
        row.state[0] = sum;
        const Real rate = row.lr / (std::sqrt(sum) + Real(optimiser->eps));
        for (size_t i = 0; i < row.items; ++i) row.take_off(i, rate * row.g(i));
        row.limit_norm();
    }
};

template <typename Dtype, bool PLAIN> struct Adam {
    static void step(Row<Dtype, PLAIN> row, const RowOptimiser *optimiser) {
        typedef typename Dtype::Real Real;
        Real *__restrict m = row.state;
        Real *__restrict v = row.state + row.items;
        const BiasCorrection bias(optimiser, next_step(row.state + 2 * row.items));
        const Real beta1 = Real(optimiser->beta1), beta2 = Real(optimiser->beta2);
        const Real rest1 = Real(1 - optimiser->beta1), rest2 = Real(1 - optimiser->beta2);
        const Real rate = Real(double(row.lr) / bias.first), root = Real(std::sqrt(bias.second)), eps = Real(optimiser->eps);
        for (size_t i = 0; i < row.items; ++i) {
            const Real g = row.g(i);
            m[i] = beta1 * m[i] + rest1 * g;
            v[i] = beta2 * v[i] + rest2 * (g * g);
            row.take_off(i, rate * m[i] / (std::sqrt(v[i]) / root + eps));
        }
        row.limit_norm();
    }
};

template <typename Dtype, bool PLAIN> struct PartialRowwiseAdam {
    static void step(Row<Dtype, PLAIN> row, const RowOptimiser *optimiser) {
        typedef typename Dtype::Real Real;
        Real *__restrict m = row.state;
        Real *v = row.state + row.items;
        const BiasCorrection bias(optimiser, next_step(v + 1));
        const Real beta1 = Real(optimiser->beta1), rest1 = Real(1 - optimiser->beta1);
        *v = Real(optimiser->beta2) * *v + Real(1 - optimiser->beta2) * row.mean_square();
        const Real rate = Real(double(row.lr) / bias.first / (std::sqrt(double(*v) / bias.second) + optimiser->eps));
        for (size_t i = 0; i < row.items; ++i) {
            m[i] = beta1 * m[i] + rest1 * row.g(i);
            row.take_off(i, rate * m[i]);
        }
        row.limit_norm();
    }
};

// -- which kernel ---------------------------------------------------------------------------------------------------------

template <template <typename, bool> class Rule, typename Dtype>
INTENTPM_PER_CPU void step_plain(void *row, const void *gradient, size_t items, const RowOptimiser *optimiser, double lr) {
    Rule<Dtype, true>::step(Row<Dtype, true>(row, gradient, items, optimiser, lr), optimiser);
}
template <template <typename, bool> class Rule, typename Dtype>
void step_with_options(void *row, const void *gradient, size_t items, const RowOptimiser *optimiser, double lr) {
    Rule<Dtype, false>::step(Row<Dtype, false>(row, gradient, items, optimiser, lr), optimiser);
}

template <template <typename, bool> class Rule> inline row_step_fn kernel_of(int dtype, bool plain) {
    switch (dtype) {
    case ROW_FLOAT32: return plain ? step_plain<Rule, Float32> : step_with_options<Rule, Float32>;
    case ROW_FLOAT64: return plain ? step_plain<Rule, Float64> : step_with_options<Rule, Float64>;
    case ROW_FLOAT16: return plain ? step_plain<Rule, Float16> : step_with_options<Rule, Float16>;
    case ROW_BFLOAT16: return plain ? step_plain<Rule, Bfloat16> : step_with_options<Rule, Bfloat16>;
    default: return nullptr;
    }
}

}  // namespace steps

// In the order of RowOptimiser.rule (runtime/optimisers.py).
enum StepRule : int { STEP_SGD, STEP_ADAGRAD, STEP_ROWWISE_ADAGRAD, STEP_ADAM, STEP_PARTIAL_ROWWISE_ADAM };

// Of weights of that RowDtype; NULL: they cannot be stepped. The optimiser's numbers are set.
inline row_step_fn step_kernel_for(int rule, int dtype, const RowOptimiser *optimiser) {
    const double none = std::numeric_limits<double>::infinity();
    const bool plain = optimiser->decay == DECAY_NONE && optimiser->max_norm == none && optimiser->clip_value == none
                       && optimiser->clip_norm == none;
    switch (rule) {
    case STEP_SGD: return steps::kernel_of<steps::Sgd>(dtype, plain);
    case STEP_ADAGRAD: return steps::kernel_of<steps::Adagrad>(dtype, plain);
    case STEP_ROWWISE_ADAGRAD: return steps::kernel_of<steps::RowwiseAdagrad>(dtype, plain);
    case STEP_ADAM: return steps::kernel_of<steps::Adam>(dtype, plain);
    default: return steps::kernel_of<steps::PartialRowwiseAdam>(dtype, plain);
    }
}

}  // namespace intentpm
