// One step of each row optimiser on one row, for each dtype that weights can have; without the GIL, in one pass where its rule
// allows. And what a replica does with it (kept.pxd): the same step, kept for the owner besides; and the block of kept steps,
// which is taken at once.
//
//   SGD
//   Adagrad             Duchi, Hazan, Singer: Adaptive subgradient methods, JMLR 12 (2011)
//   RowwiseAdagrad      one accumulator per row: DLRM, and EXACT_ROWWISE_ADAGRAD of FBGEMM
//   Adam                Kingma, Ba: Adam, ICLR 2015; with decoupled decay Loshchilov, Hutter: ICLR 2019
//   PartialRowwiseAdam  one second moment per row: PARTIAL_ROWWISE_ADAM of FBGEMM
//
// Guarantees
//   * The same numbers give the same bits on every processor. Sums have a fixed order (LANES), and products are not contracted
//     into sums (-ffp-contract=off); of a math library only the square root is used, which is exact to the last bit. It becomes a
//     vector instruction only with -fno-math-errno.
//   * A block of one step gives the bits of that step.
// Assumption: the caller is the one writer of the row.
#pragma once

#include <type_traits>

#include "runtime/_native/optimiser_rows.hpp"

namespace intentpm {

// In the order of RowOptimiser.rule (runtime/optimisers.py).
enum StepRule : int { STEP_SGD, STEP_ADAGRAD, STEP_ROWWISE_ADAGRAD, STEP_ADAM, STEP_PARTIAL_ROWWISE_ADAM };

namespace steps {

// beta^n, by squaring: what a math library makes of it differs in the last bits from one to the next.
inline double power(double beta, uint32_t n) {
    double result = 1;
    for (; n > 0; n >>= 1, beta *= beta)
        if (n & 1) result *= beta;
    return result;
}

// How much of m and v of a row's n-th step is there: 1 - beta^n. Without BY_ROW the learning rate has it already.
template <bool BY_ROW> struct BiasCorrection {
    double first = 1, second = 1;
    BiasCorrection(const RowOptimiser *optimiser, uint32_t n) {
        if constexpr (!BY_ROW) return;
        first = 1 - power(optimiser->beta1, n);
        second = 1 - power(optimiser->beta2, n);
    }
};

template <typename Real> inline Real faded(double beta, uint32_t n) { return Real(power(beta, n)); }

// -- rules: a step, and a block of kept ones; how many numbers of state there are -----------------------------------------------

template <typename Dtype, bool PLAIN> struct Sgd {
    typedef typename Dtype::Real Real;
    static constexpr size_t PER_ITEM = 0, PER_ROW = 0;
    template <typename To> static void step(Row<Dtype, PLAIN> row, const RowOptimiser *, To to) {
        for (size_t i = 0; i < row.items; ++i) {
            const Real off = row.lr * row.g(i);
            to.off(i, off);
            row.take_off(i, off);
        }
        row.limit_norm();
    }
    static void take(Row<Dtype, PLAIN> row, const RowOptimiser *, KeptRow<Real> kept) {
        for (size_t i = 0; i < row.items; ++i) row.take_off(i, kept.off[i]);
        row.limit_norm();
    }
};

template <typename Dtype, bool PLAIN> struct Adagrad {
    typedef typename Dtype::Real Real;
    static constexpr size_t PER_ITEM = 1, PER_ROW = 0;
    template <typename To> static void step(Row<Dtype, PLAIN> row, const RowOptimiser *optimiser, To to) {
        const Real eps = Real(optimiser->eps);
        for (size_t i = 0; i < row.items; ++i) {
            const Real g = row.g(i), square = g * g, off = row.lr * g;
            const Real sum = row.state[i] + square;
            row.state[i] = sum;
            to.off(i, off);
            to.square(i, square);
            row.take_off(i, off / (std::sqrt(sum) + eps));
        }
        row.limit_norm();
    }
    static void take(Row<Dtype, PLAIN> row, const RowOptimiser *optimiser, KeptRow<Real> kept) {
        const Real eps = Real(optimiser->eps);
        for (size_t i = 0; i < row.items; ++i) {
            const Real sum = row.state[i] + kept.squares[i];
            row.state[i] = sum;
            row.take_off(i, kept.off[i] / (std::sqrt(sum) + eps));
        }
        row.limit_norm();
    }
    static void show(Row<Dtype, PLAIN> row, const RowOptimiser *optimiser, KeptRow<Real> kept) {
        const Real eps = Real(optimiser->eps);
        for (size_t i = 0; i < row.items; ++i) row.take_off(i, kept.off[i] / (std::sqrt(row.state[i]) + eps));
        row.limit_norm();
    }
};

template <typename Dtype, bool PLAIN> struct RowwiseAdagrad {
    typedef typename Dtype::Real Real;
    static constexpr size_t PER_ITEM = 0, PER_ROW = 1;
    template <typename To> static void step(Row<Dtype, PLAIN> row, const RowOptimiser *optimiser, To to) {
        const Real square = row.mean_square();
        const Real rate = rate_after(row, optimiser, square);
        to.square(0, square);
        for (size_t i = 0; i < row.items; ++i) {
            const Real off = row.lr * row.g(i);
            to.off(i, off);
            row.take_off(i, rate * off);
        }
        row.limit_norm();
    }
    static void take(Row<Dtype, PLAIN> row, const RowOptimiser *optimiser, KeptRow<Real> kept) {
        const Real rate = rate_after(row, optimiser, kept.squares[0]);
        for (size_t i = 0; i < row.items; ++i) row.take_off(i, rate * kept.off[i]);
        row.limit_norm();
    }

  private:
    static Real rate_after(Row<Dtype, PLAIN> row, const RowOptimiser *optimiser, Real square) {
        row.state[0] += square;
        return Real(1) / (std::sqrt(row.state[0]) + Real(optimiser->eps));
    }
};

template <typename Dtype, bool PLAIN, bool BY_ROW> struct AdamRule {
    typedef typename Dtype::Real Real;
    static constexpr size_t PER_ITEM = 2, PER_ROW = 1;
    template <typename To> static void step(Row<Dtype, PLAIN> row, const RowOptimiser *optimiser, To to) {
        Real *__restrict m = row.state;
        Real *__restrict v = row.state + row.items;
        const BiasCorrection<BY_ROW> bias(optimiser, count_step(row.state + 2 * row.items));
        const Real beta1 = Real(optimiser->beta1), beta2 = Real(optimiser->beta2);
        const Real rest1 = Real(1 - optimiser->beta1), rest2 = Real(1 - optimiser->beta2);
        const Real rate = Real(double(row.lr) / bias.first), root = Real(std::sqrt(bias.second)), eps = Real(optimiser->eps);
        for (size_t i = 0; i < row.items; ++i) {
            const Real g = row.g(i), part1 = rest1 * g, part2 = rest2 * (g * g);
            m[i] = beta1 * m[i] + part1;
            v[i] = beta2 * v[i] + part2;
            const Real off = rate * m[i] / (std::sqrt(v[i]) / root + eps);
            to.moment(i, beta1, part1);
            to.square(i, beta2, part2);
            to.off(i, off);
            row.take_off(i, off);
        }
        row.limit_norm();
    }
    static void take(Row<Dtype, PLAIN> row, const RowOptimiser *optimiser, KeptRow<Real> kept) {
        Real *__restrict m = row.state;
        Real *__restrict v = row.state + row.items;
        const uint32_t n = steps_at(kept.steps);
        const Real fade1 = faded<Real>(optimiser->beta1, n), fade2 = faded<Real>(optimiser->beta2, n);
        count_steps(row.state + 2 * row.items, n);
        for (size_t i = 0; i < row.items; ++i) {
            m[i] = fade1 * m[i] + kept.moments[i];
            v[i] = fade2 * v[i] + kept.squares[i];
            row.take_off(i, kept.off[i]);
        }
        row.limit_norm();
    }
};

template <typename Dtype, bool PLAIN, bool BY_ROW> struct PartialRowwiseAdamRule {
    typedef typename Dtype::Real Real;
    static constexpr size_t PER_ITEM = 1, PER_ROW = 2;
    template <typename To> static void step(Row<Dtype, PLAIN> row, const RowOptimiser *optimiser, To to) {
        Real *__restrict m = row.state;
        Real *v = row.state + row.items;
        const BiasCorrection<BY_ROW> bias(optimiser, count_step(v + 1));
        const Real beta1 = Real(optimiser->beta1), rest1 = Real(1 - optimiser->beta1), beta2 = Real(optimiser->beta2);
        const Real square = Real(1 - optimiser->beta2) * row.mean_square();
        *v = beta2 * *v + square;
        to.square(0, beta2, square);
        const Real rate = Real(double(row.lr) / bias.first / (std::sqrt(double(*v) / bias.second) + optimiser->eps));
        for (size_t i = 0; i < row.items; ++i) {
            const Real part = rest1 * row.g(i);
            m[i] = beta1 * m[i] + part;
            to.moment(i, beta1, part);
            to.off(i, rate * m[i]);
            row.take_off(i, rate * m[i]);
        }
        row.limit_norm();
    }
    static void take(Row<Dtype, PLAIN> row, const RowOptimiser *optimiser, KeptRow<Real> kept) {
        Real *__restrict m = row.state;
        Real *v = row.state + row.items;
        const uint32_t n = steps_at(kept.steps);
        const Real fade1 = faded<Real>(optimiser->beta1, n);
        count_steps(v + 1, n);
        *v = faded<Real>(optimiser->beta2, n) * *v + kept.squares[0];
        for (size_t i = 0; i < row.items; ++i) {
            m[i] = fade1 * m[i] + kept.moments[i];
            row.take_off(i, kept.off[i]);
        }
        row.limit_norm();
    }
};

template <typename Dtype, bool PLAIN> struct Adam : AdamRule<Dtype, PLAIN, true> {};
template <typename Dtype, bool PLAIN> struct AdamOfCalls : AdamRule<Dtype, PLAIN, false> {};
template <typename Dtype, bool PLAIN> struct PartialRowwiseAdam : PartialRowwiseAdamRule<Dtype, PLAIN, true> {};
template <typename Dtype, bool PLAIN> struct PartialRowwiseAdamOfCalls : PartialRowwiseAdamRule<Dtype, PLAIN, false> {};

// -- which kernel ---------------------------------------------------------------------------------------------------------

template <template <typename, bool> class Rule, typename Dtype, bool PLAIN> struct Kernels {
    typedef typename Dtype::Real Real;
    static inline void step(void *row, const void *gradient, size_t items, const RowOptimiser *optimiser, double lr) {
        Rule<Dtype, PLAIN>::step(
            Row<Dtype, PLAIN>(row, gradient, items, optimiser, lr), optimiser, NotKeeping<Real>());
    }
    static inline void keep(
        void *row, void *kept, const void *gradient, size_t items, const RowOptimiser *optimiser, double lr) {
        const Row<Dtype, PLAIN> stepped(row, gradient, items, optimiser, lr);
        Rule<Dtype, PLAIN>::step(stepped, optimiser, Keeping<Dtype, PLAIN>(kept, stepped, optimiser));
        if (optimiser->gradient_bytes != 0 && kept_steps(kept, optimiser) == 1)
            note_gradient(kept, gradient, items * sizeof(typename Dtype::Item), optimiser, lr);
    }
    static inline void take(void *row, const void *kept, size_t items, const RowOptimiser *optimiser) {
        const KeptRow<Real> block(const_cast<void *>(kept), items, optimiser);
        Rule<Dtype, PLAIN>::take(Row<Dtype, PLAIN>(row, items, optimiser, *block.keep), optimiser, block);
    }
};

// Without options a kernel is compiled for each generation of processors.
template <template <typename, bool> class Rule, typename Dtype>
INTENTPM_PER_CPU void step_plain(void *row, const void *gradient, size_t items, const RowOptimiser *optimiser, double lr) {
    Kernels<Rule, Dtype, true>::step(row, gradient, items, optimiser, lr);
}
template <template <typename, bool> class Rule, typename Dtype>
INTENTPM_PER_CPU void keep_plain(
    void *row, void *kept, const void *gradient, size_t items, const RowOptimiser *optimiser, double lr) {
    Kernels<Rule, Dtype, true>::keep(row, kept, gradient, items, optimiser, lr);
}
template <template <typename, bool> class Rule, typename Dtype>
INTENTPM_PER_CPU void take_plain(void *row, const void *kept, size_t items, const RowOptimiser *optimiser) {
    Kernels<Rule, Dtype, true>::take(row, kept, items, optimiser);
}

// Of rows of a common length: with its loops unrolled, a row's memory accesses overlap those of the next.
template <template <typename, bool> class Rule, typename Dtype, size_t ITEMS>
INTENTPM_PER_CPU void step_of_length(void *row, const void *gradient, size_t, const RowOptimiser *optimiser, double lr) {
    Kernels<Rule, Dtype, true>::step(row, gradient, ITEMS, optimiser, lr);
}

template <template <typename, bool> class Rule, typename Dtype> inline row_step_fn plain_step_of(size_t items) {
    if constexpr (std::is_same_v<Dtype, Float32>) {
        switch (items) {
        case 16: return step_of_length<Rule, Dtype, 16>;
        case 32: return step_of_length<Rule, Dtype, 32>;
        case 64: return step_of_length<Rule, Dtype, 64>;
        case 128: return step_of_length<Rule, Dtype, 128>;
        }
    }
    return step_plain<Rule, Dtype>;
}

template <template <typename, bool> class Rule, typename Dtype>
inline void choose_of(RowOptimiser *optimiser, size_t items, bool plain) {
    optimiser->step = plain ? plain_step_of<Rule, Dtype>(items) : Kernels<Rule, Dtype, false>::step;
    optimiser->keep = plain ? keep_plain<Rule, Dtype> : Kernels<Rule, Dtype, false>::keep;
    optimiser->take = plain ? take_plain<Rule, Dtype> : Kernels<Rule, Dtype, false>::take;
}

template <typename Dtype, bool PLAIN>
inline void show_adagrad(void *row, const void *kept, size_t items, const RowOptimiser *optimiser) {
    const KeptRow<typename Dtype::Real> block(const_cast<void *>(kept), items, optimiser);
    Adagrad<Dtype, PLAIN>::show(Row<Dtype, PLAIN>(row, items, optimiser, *block.keep), optimiser, block);
}

// Of the rules it is Adagrad whose owner takes all steps anew (take), whatever the replica made of them, and whose state is worth
// sparing: a replica's state may be older than its weights.
inline row_take_fn show_of(int rule, int dtype, bool plain, bool at_random) {
    if (rule != STEP_ADAGRAD || at_random) return nullptr;
    switch (dtype) {
    case ROW_FLOAT32: return plain ? show_adagrad<Float32, true> : show_adagrad<Float32, false>;
    case ROW_FLOAT64: return plain ? show_adagrad<Float64, true> : show_adagrad<Float64, false>;
    case ROW_FLOAT16: return plain ? show_adagrad<Float16, true> : show_adagrad<Float16, false>;
    case ROW_BFLOAT16: return plain ? show_adagrad<Bfloat16, true> : show_adagrad<Bfloat16, false>;
    default: return nullptr;
    }
}

template <template <typename, bool> class Rule, typename Dtype> inline void choose_at_random(RowOptimiser *optimiser) {
    typedef Kernels<Rule, AtRandom<Dtype, Rule<Dtype, false>::PER_ITEM, Rule<Dtype, false>::PER_ROW>, false> Kernel;
    optimiser->step = Kernel::step;
    optimiser->keep = Kernel::keep;
    optimiser->take = Kernel::take;
}

template <template <typename, bool> class Rule>
inline bool choose(RowOptimiser *optimiser, int dtype, size_t items, bool plain, bool at_random) {
    if (at_random) {
        if (dtype == ROW_FLOAT16) choose_at_random<Rule, Float16>(optimiser);
        else choose_at_random<Rule, Bfloat16>(optimiser);
        return dtype == ROW_FLOAT16 || dtype == ROW_BFLOAT16;
    }
    switch (dtype) {
    case ROW_FLOAT32: choose_of<Rule, Float32>(optimiser, items, plain); return true;
    case ROW_FLOAT64: choose_of<Rule, Float64>(optimiser, items, plain); return true;
    case ROW_FLOAT16: choose_of<Rule, Float16>(optimiser, items, plain); return true;
    case ROW_BFLOAT16: choose_of<Rule, Bfloat16>(optimiser, items, plain); return true;
    default: return false;
    }
}

}  // namespace steps

// Sets the kernels, and what a kept row has, of rows of so many items. at_random: how weights are rounded
// (stochastic_rounding.hpp); by_calls: the rate brings the correction of Adam's bias. False: weights of that RowDtype cannot be stepped so. The optimiser's numbers are set.
inline bool choose_kernels(RowOptimiser *optimiser, int rule, int dtype, size_t items, bool at_random, bool by_calls) {
    const double none = std::numeric_limits<double>::infinity();
    const bool plain = optimiser->decay == DECAY_NONE && optimiser->max_norm == none && optimiser->clip_value == none
                       && optimiser->clip_norm == none;
    const bool rowwise = rule == STEP_ROWWISE_ADAGRAD || rule == STEP_PARTIAL_ROWWISE_ADAM;
    optimiser->real_bytes = steps::real_bytes_of(dtype);
    optimiser->keeps_moments = rule == STEP_ADAM || rule == STEP_PARTIAL_ROWWISE_ADAM;
    optimiser->kept_bytes = optimiser->real_bytes
                            * (items + (optimiser->keeps_moments ? items : 0) + (rule == STEP_SGD ? 0 : rowwise ? 1 : items) + 2);
    optimiser->by_calls = by_calls;
    const size_t gradient_bytes =
        (items * steps::item_bytes_of(dtype) + optimiser->real_bytes - 1) / optimiser->real_bytes * optimiser->real_bytes + sizeof(double);
    optimiser->gradient_bytes = 3 * gradient_bytes <= 2 * optimiser->kept_bytes ? gradient_bytes : 0;
    optimiser->show = steps::show_of(rule, dtype, plain, at_random);
    optimiser->order_matters = optimiser->decay == DECAY_DECOUPLED || optimiser->max_norm != none;
    optimiser->blocks_are_steps = (rule == STEP_SGD || optimiser->keeps_moments) && optimiser->max_norm == none;
    switch (rule) {
    case STEP_SGD: return steps::choose<steps::Sgd>(optimiser, dtype, items, plain, at_random);
    case STEP_ADAGRAD: return steps::choose<steps::Adagrad>(optimiser, dtype, items, plain, at_random);
    case STEP_ROWWISE_ADAGRAD: return steps::choose<steps::RowwiseAdagrad>(optimiser, dtype, items, plain, at_random);
    case STEP_ADAM:
        if (by_calls) return steps::choose<steps::AdamOfCalls>(optimiser, dtype, items, plain, at_random);
        return steps::choose<steps::Adam>(optimiser, dtype, items, plain, at_random);
    default:
        if (by_calls) return steps::choose<steps::PartialRowwiseAdamOfCalls>(optimiser, dtype, items, plain, at_random);
        return steps::choose<steps::PartialRowwiseAdam>(optimiser, dtype, items, plain, at_random);
    }
}

}  // namespace intentpm
