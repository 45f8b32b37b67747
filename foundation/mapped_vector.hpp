// A std::vector whose memory, once it is long, is mapped for it alone and goes back to the system with it.
//
// What is free at the end of a thread's arena goes back only when it is longer than twice the largest block that malloc has
// unmapped so far, whatever malloc_trim is asked for: 12 MB of a list of a million keys stayed with the progress thread.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>
#include <vector>

namespace intentpm {

template <class T>
struct MappedIfLong {
    using value_type = T;
    static constexpr std::size_t long_bytes = 1 << 20;

    MappedIfLong() noexcept = default;
    template <class Other>
    MappedIfLong(const MappedIfLong<Other>&) noexcept {}

    T* allocate(std::size_t count) {
        if (count * sizeof(T) < long_bytes) return static_cast<T*>(::operator new(count * sizeof(T)));
        void* memory =
            mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        return static_cast<T*>(memory);
    }

    void deallocate(T* memory, std::size_t count) noexcept {
        if (count * sizeof(T) < long_bytes)
            ::operator delete(memory);
        else
            munmap(memory, count * sizeof(T));
    }

    template <class Other>
    bool operator==(const MappedIfLong<Other>&) const noexcept { return true; }
    template <class Other>
    bool operator!=(const MappedIfLong<Other>&) const noexcept { return false; }
};

template <class T>
using mapped_vector = std::vector<T, MappedIfLong<T>>;

}  // namespace intentpm
