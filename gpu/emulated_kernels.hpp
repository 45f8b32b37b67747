// The kernels of kernels.cu compiled for the host, by the names under which NVRTC is asked for them, with the arrays that each
// reads and writes: by these the emulated device sees what is used before it is there.
#pragma once

#include <map>
#include <string>

#include "gpu/emulation.hpp"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunknown-pragmas"  // unroll
#include "gpu/kernels.cu"
#pragma GCC diagnostic pop

namespace intentpm {
namespace gpu {

enum Array : unsigned {
    SLAB = 1, SLOTS = 2, ROWS = 4, CLAIMS = 8, MARKS = 16, SUMS = 32, KEYS = 64, DIRECTORY = 128
};
constexpr int ARRAYS = 8;

// Where array n, of bit n, of a batch begins.
inline const void *array_of(const RowBatch &batch, int n) {
    const void *arrays[ARRAYS] = {batch.slab, batch.slots, batch.rows, batch.claims, batch.marks, batch.sums, batch.keys, batch.directory};
    return arrays[n];
}

struct EmulatedKernel {
    Warp::kernel_fn function;
    bool lanes_meet;
    unsigned reads, writes;
};

// False: lanes of a warp parted where they should have met.
inline bool run_kernel(const EmulatedKernel &kernel, const RowBatch &batch, unsigned blocks, uint64_t seed) {
    return run_grid(kernel.function, kernel.lanes_meet && batch.lanes > 1, batch, blocks, seed);
}

namespace catalogue {

typedef std::map<std::string, EmulatedKernel> Kernels;

template <typename D> const char *name_of();
template <> inline const char *name_of<Float32>() { return "Float32"; }
template <> inline const char *name_of<Float64>() { return "Float64"; }
template <> inline const char *name_of<Float16>() { return "Float16"; }
template <> inline const char *name_of<Bfloat16>() { return "Bfloat16"; }
template <> inline const char *name_of<Int32>() { return "Int32"; }
template <> inline const char *name_of<Int64>() { return "Int64"; }

inline std::string of(const std::string &name, const std::string &arguments = "") {
    return "intentpm::gpu::" + name + (arguments.empty() ? "" : "<" + arguments + ">");
}

template <int BYTES> void add_moves(Kernels &all) {
    const std::string bytes = std::to_string(BYTES);
    all[of("gather_rows", bytes)] = {gather_rows<BYTES>, false, SLAB | SLOTS, ROWS};
    all[of("set_rows", bytes)] = {set_rows<BYTES>, false, SLOTS | CLAIMS | ROWS, SLAB};
}

template <typename D> std::string scoped(int n) {
    return "intentpm::gpu::" + std::string(name_of<D>()) + ", " + std::to_string(n);
}

template <template <typename, int> class Rule, typename D, int N> void add_step(Kernels &all, const char *rule) {
    all[of("step_rows", "intentpm::gpu::" + std::string(rule) + ", " + scoped<D>(N))] = {
        step_rows<Rule, D, N>, true, SLOTS | CLAIMS | MARKS | SUMS | ROWS | SLAB, SLAB};
}

template <typename D, int N> void add_steps(Kernels &all) {
    add_step<Sgd, D, N>(all, "Sgd");
    add_step<Adagrad, D, N>(all, "Adagrad");
    add_step<RowwiseAdagrad, D, N>(all, "RowwiseAdagrad");
    add_step<Adam, D, N>(all, "Adam");
    add_step<PartialRowwiseAdam, D, N>(all, "PartialRowwiseAdam");
    all[of("add_to_sums", scoped<D>(N))] = {add_to_sums<D, N>, false, SLOTS | CLAIMS | ROWS, SUMS};
}

template <typename D, int N> void add_additions(Kernels &all) {
    all[of("add_rows", scoped<D>(N))] = {add_rows<D, N>, false, SLOTS | ROWS | SLAB, SLAB};
}

template <typename D, int N> void add_summed_additions(Kernels &all) {
    all[of("add_summed_rows", scoped<D>(N))] = {add_summed_rows<D, N>, false, SLOTS | CLAIMS | MARKS | SUMS | ROWS | SLAB, SLAB};
}

template <typename D> void add_float(Kernels &all) {
    constexpr int MOST = 16 / sizeof(typename D::Item);
    all[of("open_sums", "intentpm::gpu::" + std::string(name_of<D>()))] = {open_sums<D>, true, SLOTS | CLAIMS | MARKS, MARKS | SUMS};
    add_steps<D, 1>(all);
    add_steps<D, MOST>(all);
}

inline Kernels make() {
    Kernels all;
    all[of("find_slots")] = {find_slots, false, KEYS | DIRECTORY, SLOTS};
    all[of("enter_slots")] = {enter_slots, false, KEYS | SLOTS, DIRECTORY};
    all[of("claim_rows")] = {claim_rows, false, SLOTS | CLAIMS, CLAIMS};
    all[of("release_rows")] = {release_rows, false, SLOTS, CLAIMS | MARKS};
    add_moves<16>(all);
    add_moves<8>(all);
    add_moves<4>(all);
    add_moves<2>(all);
    add_moves<1>(all);
    add_float<Float32>(all);
    add_float<Float64>(all);
    add_float<Float16>(all);
    add_float<Bfloat16>(all);
    add_additions<Float32, 1>(all);
    add_additions<Float32, 4>(all);
    add_additions<Float64, 1>(all);
    add_additions<Float64, 2>(all);
    add_additions<Int32, 1>(all);
    add_additions<Int32, 4>(all);
    add_additions<Int64, 1>(all);
    add_additions<Int64, 2>(all);
    add_summed_additions<Float16, 1>(all);
    add_summed_additions<Float16, 8>(all);
    add_summed_additions<Bfloat16, 1>(all);
    add_summed_additions<Bfloat16, 8>(all);
    return all;
}

}  // namespace catalogue

// NULL: there is none of that name. It is there as long as the process.
inline const EmulatedKernel *find_emulated_kernel(const std::string &name) {
    static const catalogue::Kernels all = catalogue::make();
    const auto found = all.find(name);
    return found == all.end() ? nullptr : &found->second;
}

// Every name there is, a line each.
inline std::string emulated_kernel_names() {
    std::string lines;
    for (const auto &each : catalogue::make()) lines += each.first + "\n";
    return lines;
}

}  // namespace gpu
}  // namespace intentpm
