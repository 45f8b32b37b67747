// Rounding of float32 numbers to 16 bits, up or down at random, so that the mean is the number: steps that are smaller than half
// the distance between two weights are not lost, but taken now and then.
//
// Random bits come from a counter: a row has a number in its state, drawn from seed and key when it is made, which grows by one
// with each step; it and the place in the row are mixed. So the same seed gives the same bits, wherever the row is stepped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "foundation/primitives.hpp"

namespace intentpm {
namespace steps {

inline uint64_t mixed(uint64_t x) {  // the end of SplitMix64 (Steele, Lea, Flood 2014)
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// The random bits of one step of a row.
struct RandomBits {
    uint32_t number;

    // state: the row's, which grows.
    void draw(void *state) {
        std::memcpy(&number, state, sizeof number);
        ++number;
        std::memcpy(state, &number, sizeof number);
    }
    uint32_t at(size_t place) const {
        return uint32_t(mixed((uint64_t(number) << 32 | uint32_t(place)) + 0x9e3779b97f4a7c15u));
    }
};

// Adds a random number below a unit of the last place to the magnitude, and cuts the rest off. What is beyond the largest finite
// number is rounded to nearest, infinities and NaN stay.
inline uint16_t bfloat16_at_random(float v, uint32_t random) {
    const uint32_t b = bits_of_float(v);
    if ((b & 0x7fffffffu) >= 0x7f7f0000u) return bfloat16_of_float(v);
    return uint16_t((b + (random & 0xffffu)) >> 16);
}

inline uint16_t float16_at_random(float v, uint32_t random) {
    const uint32_t b = bits_of_float(v), magnitude = b & 0x7fffffffu, sign = (b >> 16) & 0x8000u;
    if (magnitude >= 0x477fe000u) return float16_of_float(v);  // 65504, the largest
    if (magnitude >= 0x38800000u) return uint16_t(sign | ((magnitude - 0x38000000u + (random & 0x1fffu)) >> 13));
    // Subnormal: in units of 2^-24. What is far below one has no chance of becoming one.
    const double units = double(float_from_bits(magnitude)) * 16777216.0 + double(random) * 0x1p-32;
    return uint16_t(sign | uint32_t(units));
}

}  // namespace steps

// What a row's number is when the row is made.
inline uint32_t first_rounding(uint64_t seed, int64_t key) { return uint32_t(steps::mixed(steps::mixed(seed) + uint64_t(key))); }

}  // namespace intentpm
