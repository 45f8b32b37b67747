// The functions of NVIDIA's driver that intentpm.gpu.cuda resolves, with their C interface, on the host: memory is the host's, and
// a kernel is one that was compiled for the host. Work is done at once; an event is not ready when it is first asked for.
// Not a GPU: it shows that handles, arguments and results are passed as the driver takes them.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <vector>

#include "gpu/emulated_kernels.hpp"

using namespace intentpm::gpu;

namespace {
constexpr int INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_READY = 600;
int context;
thread_local void *current;
thread_local std::vector<void *> pushed;
std::set<void *> handles;    // of streams and events
std::set<void *> asked;      // events, since they were recorded
std::map<unsigned long long, size_t> memories;  // of the device, by address
int failing;                 // the result of every launch from now on
bool stuck;                  // no event happens

int in_context(bool valid) { return current != &context ? INVALID_CONTEXT : valid ? 0 : INVALID_HANDLE; }
bool is_handle(void *handle) { return handles.count(handle) > 0; }
int make_handle(void **out) {
    if (current != &context) return INVALID_CONTEXT;
    *out = std::malloc(1);
    handles.insert(*out);
    return 0;
}
int drop_handle(void *handle) {
    if (!is_handle(handle)) return INVALID_HANDLE;
    handles.erase(handle);
    std::free(handle);
    return 0;
}
}  // namespace

extern "C" {
const void *fake_kernel(const char *name) { return find_emulated_kernel(name); }
void fake_failure(int result) { failing = result; }
void fake_stuck(int yes) { stuck = yes; }
void *fake_current(void *other) {  // the thread's context; it is `other` from now on
    void *before = current;
    current = other;
    return before;
}
size_t fake_handles() { return handles.size(); }

int cuGetErrorString(int result, const char **text) {
    *text = result == OUT_OF_MEMORY ? "out of memory" : "some error";
    return 0;
}
int cuInit(unsigned flags) { return flags ? INVALID_VALUE : 0; }
int cuDeviceGet(int *device, int ordinal) {
    *device = 40 + ordinal;
    return ordinal == 0 ? 0 : INVALID_DEVICE;
}
int cuDeviceGetName(char *name, int size, int device) {
    std::snprintf(name, size, "Fake %d", device);
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 16 && device == 40 ? 3 : 0;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **out, int device) {
    *out = &context;
    return device == 40 ? 0 : INVALID_DEVICE;
}
int cuDeviceGetCount(int *count) {
    *count = 1;
    return 0;
}
int cuCtxPushCurrent_v2(void *given) {
    pushed.push_back(current);
    current = given;
    return 0;
}
int cuCtxPopCurrent_v2(void **out) {
    if (pushed.empty()) return INVALID_CONTEXT;
    *out = current;
    current = pushed.back();
    pushed.pop_back();
    return 0;
}
int cuMemGetInfo_v2(size_t *free_bytes, size_t *all_bytes) {
    *free_bytes = size_t(1) << 30;
    *all_bytes = size_t(1) << 31;
    return in_context(true);
}
int cuMemAlloc_v2(unsigned long long *memory, size_t size) {
    if (size > (size_t(1) << 40)) return OUT_OF_MEMORY;
    *memory = (unsigned long long)std::aligned_alloc(256, (size + 255) / 256 * 256);
    memories[*memory] = size;
    return in_context(*memory != 0);
}
int cuMemFree_v2(unsigned long long memory) {
    memories.erase(memory);
    std::free((void *)memory);
    return in_context(true);
}
int cuMemHostAlloc(void **memory, size_t size, unsigned flags) {
    *memory = std::malloc(size);
    return flags ? INVALID_VALUE : in_context(true);
}
int cuMemFreeHost(void *memory) {
    std::free(memory);
    return in_context(true);
}
int cuStreamCreate(void **stream, unsigned flags) { return flags == 1 ? make_handle(stream) : INVALID_VALUE; }
int cuStreamDestroy_v2(void *stream) { return drop_handle(stream); }
int cuEventCreate(void **event, unsigned flags) { return flags == 2 ? make_handle(event) : INVALID_VALUE; }
int cuEventDestroy_v2(void *event) { return drop_handle(event); }
int cuLaunchKernel(void *kernel, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz, unsigned shared,
                   void *stream, void **arguments, void **extra) {
    if (failing) return failing;
    if (y != 1 || z != 1 || threads != unsigned(BLOCK_THREADS) || ty != 1 || tz != 1 || shared || extra) return INVALID_VALUE;
    run_kernel(*static_cast<const EmulatedKernel *>(kernel), *static_cast<const RowBatch *>(arguments[0]), x, 0);
    return in_context(is_handle(stream));
}
int cuMemcpyAsync(unsigned long long to, unsigned long long from, size_t size, void *stream) {
    std::memcpy((void *)to, (const void *)from, size);
    return in_context(is_handle(stream));
}
int cuMemsetD8Async(unsigned long long to, unsigned char value, size_t size, void *stream) {
    std::memset((void *)to, value, size);
    return in_context(is_handle(stream));
}
int cuEventRecord(void *event, void *stream) {
    asked.erase(event);
    return in_context(is_handle(event) && is_handle(stream));
}
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    return flags ? INVALID_VALUE : in_context(is_handle(event) && is_handle(stream));
}
int cuEventQuery(void *event) {
    if (!is_handle(event)) return INVALID_HANDLE;
    if (stuck) return NOT_READY;
    return asked.insert(event).second ? NOT_READY : 0;
}
int cuPointerGetAttribute(void *out, int attribute, unsigned long long address) {
    auto after = memories.upper_bound(address);
    if (attribute != 9 || after == memories.begin()) return INVALID_VALUE;
    auto [begin, size] = *--after;
    if (address >= begin + size) return INVALID_VALUE;
    *(int *)out = 0;
    return 0;
}
}
