// The kernels of rows in device memory: one source for NVRTC, nvcc and, with emulation.hpp before it, the host's compiler.
//
// A row is moved by a group of lanes of one warp, of a power of two, that take units of it in turn: neighbouring lanes touch
// neighbouring units, of 16 bytes where row and slab are aligned so. So a row is a whole number of 32-byte sectors to the
// memory, whatever its place in the slab, and the batch is one run of whole lines. Which lane serves which row: `Place`.
//
// Guarantees
//   * A slot below 0 is skipped; its row of the batch is left as it was.
//   * Where rows come twice, `set_rows` keeps the last of them, and `step_rows` takes one step with their sum.
//   * `claims` and `marks` are as before when the last kernel of a batch is done.
// Assumptions
//   * One stream runs the kernels of a slab: what one wrote is there for the next. No kernel waits for another block.
//   * A batch has fewer than 2^31 rows. A kernel for N items at once is launched where the items of a row are a multiple of N,
//     and rows, state and slab are aligned to the N items.
#ifndef INTENTPM_EMULATED
#include "kernel_arguments.hpp"
#endif

namespace intentpm {
namespace gpu {

// -- dtypes ---------------------------------------------------------------------------------------------------------------

__device__ inline unsigned bits_of(float v) { return __float_as_uint(v); }

struct Float32 {
    typedef float Item;
    typedef float Real;  // what it is computed in
    __device__ static Real load(Item v) { return v; }
    __device__ static Item store(Real v) { return v; }
};
struct Float64 {
    typedef double Item;
    typedef double Real;
    __device__ static Real load(Item v) { return v; }
    __device__ static Item store(Real v) { return v; }
};
struct Float16 {
    typedef unsigned short Item;
    typedef float Real;
#ifdef INTENTPM_EMULATED
    static Real load(Item v) { return float_of_float16(v); }
    static Item store(Real v) { return float16_of_float(v); }
#else
    __device__ static Real load(Item v) {
        float f;
        asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v));
        return f;
    }
    __device__ static Item store(Real v) {
        Item h;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
        return h;
    }
#endif
};
struct Bfloat16 {
    typedef unsigned short Item;
    typedef float Real;
    __device__ static Real load(Item v) { return __uint_as_float(unsigned(v) << 16); }
    __device__ static Item store(Real v) {  // to nearest even; NaN stays NaN
        const unsigned b = bits_of(v);
        if ((b & 0x7fffffffu) > 0x7f800000u) return Item((b >> 16) | 0x40u);
        return Item((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
    }
};
struct Int32 {  // sums wrap, so they are those of unsigned numbers
    typedef unsigned Item;
    typedef unsigned Real;
    __device__ static Real load(Item v) { return v; }
    __device__ static Item store(Real v) { return v; }
};
struct Int64 {
    typedef unsigned long long Item;
    typedef unsigned long long Real;
    __device__ static Real load(Item v) { return v; }
    __device__ static Item store(Real v) { return v; }
};

// -- units: what one lane moves by one instruction --------------------------------------------------------------------------

template <int BYTES> struct Unit;
template <> struct Unit<16> { typedef uint4 Type; };
template <> struct Unit<8> { typedef uint2 Type; };
template <> struct Unit<4> { typedef unsigned Type; };
template <> struct Unit<2> { typedef unsigned short Type; };
template <> struct Unit<1> { typedef unsigned char Type; };

// N numbers that lie together and are aligned to their size, or to 16 bytes where they are longer.
template <typename T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
    T at[N];
};

template <typename T, int N> __device__ inline Pack<T, N> load_pack(const void *memory) {
    return *static_cast<const Pack<T, N> *>(memory);
}
template <typename T, int N> __device__ inline void store_pack(void *memory, const Pack<T, N> &pack) {
    *static_cast<Pack<T, N> *>(memory) = pack;
}

// -- who does what ----------------------------------------------------------------------------------------------------------

// Groups take rows in turn: at any moment the grid works on a stretch of neighbouring rows of the batch.
struct Place {
    unsigned lane;         // within its group
    long long group;       // of the grid
    long long groups;
    long long first;       // group of the warp's first lane: the same for all lanes of the warp

    __device__ explicit Place(unsigned lanes) {
        const long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;
        lane = threadIdx.x & (lanes - 1);
        group = thread / lanes;
        groups = (long long)gridDim.x * blockDim.x / lanes;
        first = (thread - threadIdx.x % WARP_LANES) / lanes;
    }
};

__device__ inline char *row_in(const RowBatch &batch, int slot) { return batch.slab + slot * batch.stride_bytes; }

// Whether position i of the batch speaks for its slot: where it comes more than once, the last does.
__device__ inline bool speaks(const RowBatch &batch, long long i, int slot) {
    return slot >= 0 && batch.claims[slot] == int(i);
}

// Sum over the lanes of a group, the same in all of them. All lanes of the warp call it.
template <typename Real> __device__ inline Real sum_of_group(Real v, unsigned lanes) {
    for (unsigned apart = lanes / 2; apart > 0; apart /= 2) v += __shfl_xor_sync(0xffffffffu, v, int(apart));
    return v;
}

// All lanes of a group have read what one of them writes next.
__device__ inline void meet(unsigned lanes) {
    if (lanes > 1) __syncwarp();
}

// -- moving rows --------------------------------------------------------------------------------------------------------------

// rows[i] = slab[slots[i]]. Reads: random rows of the slab, each once, as whole sectors; writes: one run. Each lane has
// ROWS_AT_ONCE loads under way before the first store: 1024 lanes of a multiprocessor have 64 KiB of 16-byte loads in flight. An
// H100 needs some 16 KiB of each of its 132 (3.35 TB/s times 0.6 us).
template <int BYTES> __global__ void gather_rows(RowBatch batch) {
    typedef typename Unit<BYTES>::Type U;
    const Place place(batch.lanes);
    const unsigned units = batch.row_bytes / BYTES;
    for (long long first = place.group; first < batch.count; first += place.groups * ROWS_AT_ONCE) {
        const U *from[ROWS_AT_ONCE];
#pragma unroll
        for (int n = 0; n < ROWS_AT_ONCE; ++n) {
            const long long i = first + n * place.groups;
            const int slot = i < batch.count ? batch.slots[i] : -1;
            from[n] = slot < 0 ? nullptr : reinterpret_cast<const U *>(row_in(batch, slot));
        }
        for (unsigned u = place.lane; u < units; u += batch.lanes) {
            U moved[ROWS_AT_ONCE];
#pragma unroll
            for (int n = 0; n < ROWS_AT_ONCE; ++n)
                if (from[n]) moved[n] = from[n][u];
#pragma unroll
            for (int n = 0; n < ROWS_AT_ONCE; ++n)
                if (from[n]) reinterpret_cast<U *>(batch.rows + (first + n * place.groups) * batch.row_bytes)[u] = moved[n];
        }
    }
}

// slab[slots[i]] = rows[i], the last of those with the same slot, which `claim_rows` found. Reads: one run, but for rows that
// are not the last; writes: random rows of the slab, each once.
template <int BYTES> __global__ void set_rows(RowBatch batch) {
    typedef typename Unit<BYTES>::Type U;
    const Place place(batch.lanes);
    const unsigned units = batch.row_bytes / BYTES;
    for (long long i = place.group; i < batch.count; i += place.groups) {
        const int slot = batch.slots[i];
        if (!speaks(batch, i, slot)) continue;
        U *to = reinterpret_cast<U *>(row_in(batch, slot));
        const U *from = reinterpret_cast<const U *>(batch.rows + i * batch.row_bytes);
        for (unsigned u = place.lane; u < units; u += batch.lanes) to[u] = from[u];
    }
}

// -- slots --------------------------------------------------------------------------------------------------------------------

// slots[i] = directory[keys[i]]. Reads: a run of 8-byte keys, then random 4-byte entries: a sector for each, and of hot keys
// one that the cache has.
__global__ void find_slots(RowBatch batch) {
    const Place place(1);
    int *slots = const_cast<int *>(batch.slots);
    for (long long i = place.group; i < batch.count; i += place.groups) slots[i] = batch.directory[batch.keys[i]];
}

// directory[keys[i]] = slots[i]; no key comes twice. Writes: random 4-byte entries.
__global__ void enter_slots(RowBatch batch) {
    const Place place(1);
    for (long long i = place.group; i < batch.count; i += place.groups) batch.directory[batch.keys[i]] = batch.slots[i];
}

// -- rows that come twice -----------------------------------------------------------------------------------------------------
// In three kernels, each of which needs what the one before left: claim_rows, open_sums, add_to_sums; then one of those that
// ask `speaks`, and release_rows. What is added up are the rows of positions that do not speak; most batches have few, and
// only their sums are written and read.

// claims[slots[i]] = the last i. Atomics on random 4-byte entries; a hot slot's are served by the cache one after the other.
__global__ void claim_rows(RowBatch batch) {
    const Place place(1);
    for (long long i = place.group; i < batch.count; i += place.groups)
        if (batch.slots[i] >= 0) atomicMax(&batch.claims[batch.slots[i]], int(i));
}

// Zeros the sum of each position that speaks for others. Who marks it first does it. Writes: random sums, each once.
template <typename D> __global__ void open_sums(RowBatch batch) {
    typedef typename D::Real Real;
    const Place place(batch.lanes);
    const unsigned lanes = batch.lanes;
    for (long long first = place.first; first < batch.count; first += place.groups) {
        const long long i = first + (place.group - place.first);
        const int slot = i < batch.count ? batch.slots[i] : -1;
        int speaker = -1;
        if (slot >= 0 && place.lane == 0 && batch.claims[slot] != int(i)) speaker = batch.claims[slot];
        int opens = speaker >= 0 && atomicExch(&batch.marks[speaker], 1) == 0 ? speaker + 1 : 0;
        opens = sum_of_group(opens, lanes);  // to the lanes that are not the first
        if (opens == 0) continue;            // no lane of a group goes on alone, and nothing below waits
        Real *sum = reinterpret_cast<Real *>(batch.sums) + (long long)(opens - 1) * batch.items;
        for (unsigned item = place.lane; item < batch.items; item += lanes) sum[item] = Real(0);
    }
}

#ifdef INTENTPM_EMULATED
template <typename Real> inline void add_four(Real *memory, const Real *v) {
    for (int n = 0; n < 4; ++n) atomicAdd(memory + n, v[n]);
}
#else
template <typename Real> __device__ inline void add_four(Real *memory, const Real *v) {
#pragma unroll
    for (int n = 0; n < 4; ++n) atomicAdd(memory + n, v[n]);
}
__device__ inline void add_four(float *memory, const float *v) {
#if __CUDA_ARCH__ >= 900
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
                 :: "l"(memory), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]) : "memory");
#else
#pragma unroll
    for (int n = 0; n < 4; ++n) atomicAdd(memory + n, v[n]);
#endif
}
#endif

// memory[item] += v for N items from an address that is aligned to them.
template <int N, typename Real> __device__ inline void add_items(Real *memory, const Real *v) {
    if (N % 4 == 0) {
#pragma unroll
        for (int n = 0; n < N; n += 4) add_four(memory + n, v + n);
    } else {
#pragma unroll
        for (int n = 0; n < N; ++n) atomicAdd(memory + n, v[n]);
    }
}

// sums[who speaks for i] += rows[i]. Reads: of the batch the rows that do not speak; adds: in the cache, 16 bytes by one
// instruction from sm_90 on.
template <typename D, int N> __global__ void add_to_sums(RowBatch batch) {
    typedef typename D::Real Real;
    typedef typename D::Item Item;
    const Place place(batch.lanes);
    for (long long i = place.group; i < batch.count; i += place.groups) {
        const int slot = batch.slots[i];
        if (slot < 0 || speaks(batch, i, slot)) continue;
        Real *sum = reinterpret_cast<Real *>(batch.sums) + (long long)batch.claims[slot] * batch.items;
        const Item *from = reinterpret_cast<const Item *>(batch.rows + i * batch.row_bytes);
        for (unsigned item = place.lane * N; item < batch.items; item += batch.lanes * N) {
            const Pack<Item, N> pack = load_pack<Item, N>(from + item);
            Real v[N];
#pragma unroll
            for (int n = 0; n < N; ++n) v[n] = D::load(pack.at[n]);
            add_items<N>(sum + item, v);
        }
    }
}

// claims and marks as before the batch.
__global__ void release_rows(RowBatch batch) {
    const Place place(1);
    for (long long i = place.group; i < batch.count; i += place.groups) {
        batch.marks[i] = 0;
        if (batch.slots[i] >= 0) batch.claims[batch.slots[i]] = -1;
    }
}

// -- adding -------------------------------------------------------------------------------------------------------------------

// slab[slots[i]] += rows[i], for dtypes that the memory can add to by itself: nothing is read into a lane but the batch. A hot
// row's additions are made in the cache. Rows that come twice need nothing more.
template <typename D, int N> __global__ void add_rows(RowBatch batch) {
    typedef typename D::Item Item;
    const Place place(batch.lanes);
    for (long long i = place.group; i < batch.count; i += place.groups) {
        const int slot = batch.slots[i];
        if (slot < 0) continue;
        Item *to = reinterpret_cast<Item *>(row_in(batch, slot));
        const Item *from = reinterpret_cast<const Item *>(batch.rows + i * batch.row_bytes);
        for (unsigned item = place.lane * N; item < batch.items; item += batch.lanes * N) {
            const Pack<Item, N> pack = load_pack<Item, N>(from + item);
            add_items<N>(to + item, pack.at);
        }
    }
}

// What is to be added to row i, or its gradient: its own and the sum of those it speaks for.
template <typename D, int N> struct Given {
    typedef typename D::Real Real;
    typedef typename D::Item Item;
    const Item *own;
    const Real *others;  // nullptr: there are none

    __device__ Given(const RowBatch &batch, long long i)
        : own(reinterpret_cast<const Item *>(batch.rows + i * batch.row_bytes)),
          others(batch.marks[i] ? reinterpret_cast<const Real *>(batch.sums) + i * batch.items : nullptr) {}

    __device__ void load(unsigned item, Real *v) const {
        const Pack<Item, N> pack = load_pack<Item, N>(own + item);
#pragma unroll
        for (int n = 0; n < N; ++n) v[n] = D::load(pack.at[n]);
        if (!others) return;
        const Pack<Real, N> sums = load_pack<Real, N>(others + item);
#pragma unroll
        for (int n = 0; n < N; ++n) v[n] += sums.at[n];
    }
};

// The same for 16-bit rows, once their duplicates are summed: a row is read and written once.
template <typename D, int N> __global__ void add_summed_rows(RowBatch batch) {
    typedef typename D::Real Real;
    typedef typename D::Item Item;
    const Place place(batch.lanes);
    for (long long i = place.group; i < batch.count; i += place.groups) {
        const int slot = batch.slots[i];
        if (!speaks(batch, i, slot)) continue;
        const Given<D, N> given(batch, i);
        Item *to = reinterpret_cast<Item *>(row_in(batch, slot));
        for (unsigned item = place.lane * N; item < batch.items; item += batch.lanes * N) {
            Real v[N];
            given.load(item, v);
            Pack<Item, N> pack = load_pack<Item, N>(to + item);
#pragma unroll
            for (int n = 0; n < N; ++n) pack.at[n] = D::store(D::load(pack.at[n]) + v[n]);
            store_pack(to + item, pack);
        }
    }
}

// -- steps of a row optimiser ---------------------------------------------------------------------------------------------------
// The rules are those of runtime/_native/optimiser_kernels.hpp, where the papers are named; state beside the weights. A group
// of lanes takes one step on one row: row and gradient are read once from memory. A rule with one number for the whole row
// reads the gradient a second time, from the cache.

// Row i of the batch, and the slab's row that it is a gradient of. `mine` is false where there is nothing to do; then the lanes
// still meet the others of their warp, and touch no memory.
template <typename D, int N> struct Stepped {
    typedef typename D::Real Real;
    typedef typename D::Item Item;
    const StepNumbers &numbers;
    bool mine;
    unsigned lane, lanes, items;
    Given<D, N> given;
    Item *weights;
    Real *state;
    Real clip_value, clip_scale, l2, keep;

    __device__ Stepped(const RowBatch &batch, const Place &place, long long i, int slot)
        : numbers(batch.step), mine(i < batch.count && speaks(batch, i, slot)), lane(place.lane), lanes(batch.lanes),
          items(mine ? batch.items : 0), given(batch, mine ? i : 0),
          weights(reinterpret_cast<Item *>(row_in(batch, mine ? slot : 0))),
          state(reinterpret_cast<Real *>(row_in(batch, mine ? slot : 0) + batch.step.state_offset)),
          clip_value(Real(numbers.clip_value)), clip_scale(1), l2(numbers.decay == L2_DECAY ? Real(numbers.weight_decay) : Real(0)),
          keep(numbers.decay == DECOUPLED_DECAY ? Real(1 - numbers.lr * numbers.weight_decay) : Real(1)) {
        if (is_finite(numbers.clip_norm)) clip_scale = scale_to(Real(numbers.clip_norm), true);
    }

    __device__ static bool is_finite(double v) { return v < 1e308; }

    // The gradient as the rule sees it: clipped, and with L2 decay.
    __device__ void gradient(unsigned item, const Real *w, Real *g) const {
        given.load(item, g);
#pragma unroll
        for (int n = 0; n < N; ++n) {
            g[n] = g[n] > clip_value ? clip_value : g[n] < -clip_value ? -clip_value : g[n];  // NaN stays
            g[n] *= clip_scale;
            if (l2 != Real(0)) g[n] += l2 * w[n];
        }
    }

    __device__ void load_weights(unsigned item, Real *w) const {
        const Pack<Item, N> pack = load_pack<Item, N>(weights + item);
#pragma unroll
        for (int n = 0; n < N; ++n) w[n] = D::load(pack.at[n]);
    }

    __device__ void store_weights(unsigned item, const Real *w) {
        Pack<Item, N> pack;
#pragma unroll
        for (int n = 0; n < N; ++n) pack.at[n] = D::store(w[n]);
        store_pack(weights + item, pack);
    }

    // step(item, g, taken): what is taken off each of the N weights from item on.
    template <typename Step> __device__ void take_off(Step step) {
        for (unsigned item = lane * N; item < items; item += lanes * N) {
            Real w[N], g[N], taken[N];
            load_weights(item, w);
            gradient(item, w, g);
            step(item, g, taken);
#pragma unroll
            for (int n = 0; n < N; ++n) w[n] = w[n] * keep - taken[n];
            store_weights(item, w);
        }
        if (is_finite(numbers.max_norm)) limit_norm();
    }

    __device__ Real mean_square() const {
        Real sum = 0;
        for (unsigned item = lane * N; item < items; item += lanes * N) {
            Real w[N], g[N];
            load_weights(item, w);
            gradient(item, w, g);
#pragma unroll
            for (int n = 0; n < N; ++n) sum += g[n] * g[n];
        }
        return sum_of_group(sum, lanes) / Real(items ? items : 1);
    }

  private:
    __device__ Real scale_to(Real largest, bool of_gradient) const {
        Real sum = 0;
        for (unsigned item = lane * N; item < items; item += lanes * N) {
            Real v[N];
            if (of_gradient) given.load(item, v);
            else load_weights(item, v);
#pragma unroll
            for (int n = 0; n < N; ++n) {
                if (of_gradient) v[n] = v[n] > clip_value ? clip_value : v[n] < -clip_value ? -clip_value : v[n];
                sum += v[n] * v[n];
            }
        }
        const Real norm = sqrt(sum_of_group(sum, lanes));
        return norm > largest ? largest / norm : Real(1);
    }

    __device__ void limit_norm() {
        const Real scale = scale_to(Real(numbers.max_norm), false);
        for (unsigned item = lane * N; item < items && scale != Real(1); item += lanes * N) {
            Real w[N];
            load_weights(item, w);
#pragma unroll
            for (int n = 0; n < N; ++n) w[n] *= scale;
            store_weights(item, w);
        }
    }
};

// A number of the row's state, which all lanes have read before the first of them writes it.
template <typename T> struct Shared {
    T *memory;
    T value;
    template <typename Row> __device__ Shared(const Row &row, void *place) : memory(static_cast<T *>(place)), value(0) {
        if (row.mine) value = *memory;
        meet(row.lanes);
    }
    template <typename Row> __device__ void set(const Row &row, T v) {
        value = v;
        if (row.mine && row.lane == 0) *memory = v;
    }
};

// How much of m and v of a row's n-th step is there: 1 - beta^n. The step is counted.
template <typename Real> struct BiasCorrection {
    Real first, second;
    template <typename Row> __device__ BiasCorrection(const Row &row, void *count) {
        Shared<unsigned> n(row, count);
        n.set(row, n.value + (n.value != 0xffffffffu));
        first = Real(-expm1(Real(n.value * row.numbers.log_beta1)));
        second = Real(-expm1(Real(n.value * row.numbers.log_beta2)));
    }
};

template <typename D, int N> struct Sgd {
    typedef typename D::Real Real;
    __device__ static void step(Stepped<D, N> &row) {
        const Real lr = Real(row.numbers.lr);
        row.take_off([&](unsigned, const Real *g, Real *taken) {
#pragma unroll
            for (int n = 0; n < N; ++n) taken[n] = lr * g[n];
        });
    }
};

template <typename D, int N> struct Adagrad {
    typedef typename D::Real Real;
    __device__ static void step(Stepped<D, N> &row) {
        const Real lr = Real(row.numbers.lr), eps = Real(row.numbers.eps);
        row.take_off([&](unsigned item, const Real *g, Real *taken) {
            Pack<Real, N> sum = load_pack<Real, N>(row.state + item);
#pragma unroll
            for (int n = 0; n < N; ++n) {
                sum.at[n] += g[n] * g[n];
                taken[n] = lr * g[n] / (sqrt(sum.at[n]) + eps);
            }
            store_pack(row.state + item, sum);
        });
    }
};

template <typename D, int N> struct RowwiseAdagrad {
    typedef typename D::Real Real;
    __device__ static void step(Stepped<D, N> &row) {
        Shared<Real> sum(row, row.state);
        sum.set(row, sum.value + row.mean_square());
        const Real rate = Real(row.numbers.lr) / (sqrt(sum.value) + Real(row.numbers.eps));
        row.take_off([&](unsigned, const Real *g, Real *taken) {
#pragma unroll
            for (int n = 0; n < N; ++n) taken[n] = rate * g[n];
        });
    }
};

template <typename D, int N> struct Adam {
    typedef typename D::Real Real;
    __device__ static void step(Stepped<D, N> &row) {
        Real *m = row.state;
        Real *v = row.state + row.items;
        const BiasCorrection<Real> bias(row, row.state + 2 * row.items);
        const Real beta1 = Real(row.numbers.beta1), beta2 = Real(row.numbers.beta2), eps = Real(row.numbers.eps);
        const Real rest1 = Real(1 - row.numbers.beta1), rest2 = Real(1 - row.numbers.beta2);
        const Real rate = Real(row.numbers.lr) / bias.first, root = sqrt(bias.second);
        row.take_off([&](unsigned item, const Real *g, Real *taken) {
            Pack<Real, N> first = load_pack<Real, N>(m + item), second = load_pack<Real, N>(v + item);
#pragma unroll
            for (int n = 0; n < N; ++n) {
                first.at[n] = beta1 * first.at[n] + rest1 * g[n];
                second.at[n] = beta2 * second.at[n] + rest2 * (g[n] * g[n]);
                taken[n] = rate * first.at[n] / (sqrt(second.at[n]) / root + eps);
            }
            store_pack(m + item, first);
            store_pack(v + item, second);
        });
    }
};

template <typename D, int N> struct PartialRowwiseAdam {
    typedef typename D::Real Real;
    __device__ static void step(Stepped<D, N> &row) {
        Real *m = row.state;
        Real *second = row.state + row.items;
        const BiasCorrection<Real> bias(row, second + 1);
        const Real beta1 = Real(row.numbers.beta1), rest1 = Real(1 - row.numbers.beta1);
        Shared<Real> v(row, second);
        v.set(row, Real(row.numbers.beta2) * v.value + Real(1 - row.numbers.beta2) * row.mean_square());
        const Real rate = Real(row.numbers.lr) / bias.first / (sqrt(v.value / bias.second) + Real(row.numbers.eps));
        row.take_off([&](unsigned item, const Real *g, Real *taken) {
            Pack<Real, N> first = load_pack<Real, N>(m + item);
#pragma unroll
            for (int n = 0; n < N; ++n) {
                first.at[n] = beta1 * first.at[n] + rest1 * g[n];
                taken[n] = rate * first.at[n];
            }
            store_pack(m + item, first);
        });
    }
};

// One step on slab[slots[i]] with the gradient rows[i], or with the sum of those with the same slot. Reads: the batch as a run,
// random whole rows of the slab; writes: the same rows.
template <template <typename, int> class Rule, typename D, int N> __global__ void step_rows(RowBatch batch) {
    const Place place(batch.lanes);
    for (long long first = place.first; first < batch.count; first += place.groups) {  // the same turns for a whole warp
        const long long i = first + (place.group - place.first);
        Stepped<D, N> row(batch, place, i, i < batch.count ? batch.slots[i] : -1);
        Rule<D, N>::step(row);
    }
}

}  // namespace gpu
}  // namespace intentpm
