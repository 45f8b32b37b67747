// What CUDA's words in kernels.cu mean to the host's compiler, and what runs such a kernel: one warp after the other, its lanes
// as coroutines that give way where lanes meet (shuffles, __syncwarp), in an order that a seed chooses.
//
// Guarantees
//   * A lane's value reaches another by a shuffle alone; a lane that leaves while others of its warp wait is reported.
//   * Kernels in which lanes never meet run without coroutines.
// Assumption: one kernel runs at a time per thread of the host. Atomics are plain additions, for nothing else runs meanwhile.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

#include "foundation/primitives.hpp"
#include "gpu/kernel_arguments.hpp"

#define INTENTPM_EMULATED
#define __global__ inline
#define __device__

namespace intentpm {
namespace gpu {

using std::expm1;
using std::sqrt;

struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct Extent { unsigned x; };
inline thread_local Extent threadIdx, blockIdx, blockDim, gridDim;

inline unsigned __float_as_uint(float v) { return bits_of_float(v); }
inline float __uint_as_float(unsigned v) { return float_from_bits(v); }

template <typename T> inline T atomicAdd(T *memory, T v) { T before = *memory; *memory = before + v; return before; }
inline int atomicMax(int *memory, int v) { int before = *memory; *memory = std::max(before, v); return before; }
inline int atomicExch(int *memory, int v) { int before = *memory; *memory = v; return before; }

// -- a warp whose lanes meet ------------------------------------------------------------------------------------------------

class Warp {
  public:
    typedef void (*kernel_fn)(RowBatch);

    // Threads [first, first + lanes) of the block. False: a lane left while others waited for it.
    bool run(kernel_fn kernel, const RowBatch &batch, unsigned first, unsigned lanes, uint64_t seed) {
        kernel_ = kernel;
        batch_ = &batch;
        first_ = first;
        for (unsigned lane = 0; lane < lanes; ++lane) prepare(lane);
        for (unsigned left = lanes, turn = 0; left > 0; ++turn) {
            unsigned leaving = 0;
            for (unsigned n = 0; n < lanes; ++n) {
                const unsigned lane = (n * 7 + unsigned(seed >> (turn % 32))) % lanes;  // 7: prime to every number of lanes
                if (done_[lane]) continue;
                resume(lane);
                leaving += done_[lane];
            }
            left -= leaving;
            if (leaving > 0 && left > 0) return false;
            std::memcpy(taken_, given_, sizeof taken_);
        }
        return true;
    }

    // The value that the lane `apart` away brought to this meeting.
    template <typename T> T exchange(T v, unsigned apart) {
        static_assert(sizeof(T) <= sizeof(uint64_t), "a lane brings 8 bytes");
        const unsigned lane = lane_;
        std::memcpy(&given_[lane], &v, sizeof v);
        swapcontext(&lanes_[lane], &host_);
        T other;
        std::memcpy(&other, &taken_[lane ^ apart], sizeof other);
        return other;
    }

  private:
    static constexpr size_t STACK_BYTES = 64 << 10;

    static Warp *&entered() {
        static thread_local Warp *warp;
        return warp;
    }

    static void enter() {
        Warp *warp = entered();
        const unsigned lane = warp->lane_;
        warp->kernel_(*warp->batch_);
        warp->done_[lane] = true;
    }

    void prepare(unsigned lane) {
        if (!stacks_[lane]) stacks_[lane].reset(new char[STACK_BYTES]);
        done_[lane] = false;
        getcontext(&lanes_[lane]);
        lanes_[lane].uc_stack.ss_sp = stacks_[lane].get();
        lanes_[lane].uc_stack.ss_size = STACK_BYTES;
        lanes_[lane].uc_link = &host_;
        makecontext(&lanes_[lane], &Warp::enter, 0);
    }

    void resume(unsigned lane) {
        lane_ = lane;
        threadIdx.x = first_ + lane;
        entered() = this;
        swapcontext(&host_, &lanes_[lane]);
    }

    kernel_fn kernel_ = nullptr;
    const RowBatch *batch_ = nullptr;
    unsigned first_ = 0, lane_ = 0;
    ucontext_t host_, lanes_[WARP_LANES];
    std::unique_ptr<char[]> stacks_[WARP_LANES];
    bool done_[WARP_LANES] = {};
    uint64_t given_[WARP_LANES] = {}, taken_[WARP_LANES] = {};
};

inline Warp &warp_of_thread() {
    static thread_local Warp warp;
    return warp;
}

template <typename T> inline T __shfl_xor_sync(unsigned, T v, int apart) { return warp_of_thread().exchange(v, unsigned(apart)); }
inline void __syncwarp() { warp_of_thread().exchange(0, 0); }

// -- a launch ---------------------------------------------------------------------------------------------------------------

// Blocks and threads in an order of the seed. False: lanes of a warp parted where they should have met.
inline bool run_grid(Warp::kernel_fn kernel, bool lanes_meet, const RowBatch &batch, unsigned blocks, uint64_t seed) {
    blockDim.x = BLOCK_THREADS;
    gridDim.x = blocks;
    const bool backwards = seed & 1;
    for (unsigned n = 0; n < blocks; ++n) {
        blockIdx.x = unsigned((n + seed / 2) % blocks);
        for (unsigned m = 0; m < BLOCK_THREADS; m += lanes_meet ? WARP_LANES : 1) {
            const unsigned thread = backwards ? BLOCK_THREADS - m - (lanes_meet ? WARP_LANES : 1) : m;
            if (lanes_meet) {
                if (!warp_of_thread().run(kernel, batch, thread, WARP_LANES, seed)) return false;
            } else {
                threadIdx.x = thread;
                kernel(batch);
            }
        }
    }
    return true;
}

}  // namespace gpu
}  // namespace intentpm
