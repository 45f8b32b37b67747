// One defect of each kind that the sanitizers are to find, so that a run that reports nothing can be believed.
#include <cstdint>
#include <cstdlib>
#include <thread>

static volatile int shared_by_two = 0;

extern "C" {

int heap_overflow(int length) {
    volatile char *memory = static_cast<char *>(std::malloc(length));
    int beyond = memory[length];
    std::free(const_cast<char *>(memory));
    return beyond;
}

int misaligned(int offset) {
    alignas(8) static char bytes[16];
    return *reinterpret_cast<volatile int *>(bytes + offset);
}

int overflow(int number) { return number + INT32_MAX; }

__attribute__((noinline)) void leak(int length) {
    for (int i = 0; i < 8; ++i) static_cast<volatile char *>(std::malloc(length))[0] = 1;
}

void race(int times) {
    auto add = [=] { for (int i = 0; i < times; ++i) shared_by_two = shared_by_two + 1; };
    std::thread other(add);
    add();
    other.join();
}

}
