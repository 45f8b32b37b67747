// The order in which keys wait for a record, where not all of them go into the next round.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace intentpm {

// By when they are needed; at once where the tick is 0. Those of one tick as they came. The first ``sorted`` are in order already.
template <typename Reference>
void soonest_first(Reference *references, size_t sorted, size_t count, uint32_t now) {
    const auto due = [now](const Reference &reference) {
        return reference.tick ? static_cast<int32_t>(reference.tick - now) : std::numeric_limits<int32_t>::min();
    };
    const auto sooner = [due](const Reference &a, const Reference &b) { return due(a) < due(b); };
    std::stable_sort(references + sorted, references + count, sooner);
    std::inplace_merge(references, references + sorted, references + count, sooner);
}

}  // namespace intentpm
