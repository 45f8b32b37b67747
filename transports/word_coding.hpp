// Fewer bytes for numbers: words of 32 bits without what their exponents have in common. Lossless, for links that are slow.
//
// Rows are floats of a few magnitudes: of the 8 bits of an exponent 2 to 4 are news. Each word is turned left by one bit, so
// that a float's exponent is its upper byte. Those bytes are Huffman-coded (codes of at most 11 bits, after D. Huffman, 1952), the
// others are packed as they are. Keys and versions have upper bytes that are mostly zero and gain as much.
//
//     raw bytes u64 | bits of each code u4 [256] | bytes of three streams u32 [3], 0 u32 | 4 streams | 3 bytes a word | last bytes
//
// Four streams, each of a quarter of the words, so that a processor decodes four at a time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace intentpm {

constexpr size_t CODED_LEAD_BYTES = 8 + 128 + 16;
constexpr size_t LEAST_WORDS = 1024;  // below that the table of lengths is not worth it
constexpr int LONGEST_CODE = 11;
constexpr int STREAMS = 4;

inline uint32_t word_at(const char *data, size_t i) {
    uint32_t word;
    std::memcpy(&word, data + 4 * i, 4);
    return word;
}

inline unsigned exponent_of(uint32_t word) { return word >> 23 & 0xff; }

// Where the words of a stream begin; after the last: where they end.
inline size_t stream_begin(size_t words, int stream) {
    return stream == STREAMS ? words : words / STREAMS * stream;
}

// -- lengths of codes ----------------------------------------------------------------------------------------------------------

// Of a Huffman code for symbols that occur so often; 0: never.
inline void huffman_lengths(const uint32_t *counts, uint8_t *lengths) {
    struct Node { uint32_t count; int16_t left, right; };
    Node nodes[512];
    int order[256], symbols = 0, made = 256;
    for (int s = 0; s < 256; ++s) {
        lengths[s] = 0;
        nodes[s] = {counts[s], -1, -1};
        if (counts[s]) order[symbols++] = s;
    }
    if (symbols == 1) {
        lengths[order[0]] = 1;
        return;
    }
    std::sort(order, order + symbols, [&](int a, int b) { return counts[a] != counts[b] ? counts[a] < counts[b] : a < b; });
    int leaf = 0, inner = 256;
    auto smallest = [&] {
        if (leaf < symbols && (inner == made || nodes[order[leaf]].count <= nodes[inner].count)) return order[leaf++];
        return inner++;
    };
    while (symbols - leaf + made - inner > 1) {
        const int left = smallest(), right = smallest();
        nodes[made++] = {nodes[left].count + nodes[right].count, static_cast<int16_t>(left), static_cast<int16_t>(right)};
    }
    uint8_t depth[512];
    depth[made - 1] = 0;
    for (int node = made - 1; node >= 256; --node) {
        for (int child : {nodes[node].left, nodes[node].right}) {
            depth[child] = static_cast<uint8_t>(depth[node] + 1);
            if (child < 256) lengths[child] = depth[child];
        }
    }
    // Codes that are too long are cut; the room that takes is given by the rarest of the others.
    int room = 1 << LONGEST_CODE;
    for (int i = 0; i < symbols; ++i) {
        lengths[order[i]] = std::min<uint8_t>(lengths[order[i]], LONGEST_CODE);
        room -= 1 << (LONGEST_CODE - lengths[order[i]]);
    }
    while (room < 0) {
        for (int i = 0; i < symbols && room < 0; ++i) {
            if (lengths[order[i]] == LONGEST_CODE) continue;
            room += 1 << (LONGEST_CODE - ++lengths[order[i]]);
            break;
        }
    }
}

// Canonical codes, their first bit lowest. False: there are no such codes.
inline bool assign_codes(const uint8_t *lengths, uint16_t *codes) {
    uint32_t next = 0;
    for (int length = 1; length <= LONGEST_CODE; ++length) {
        next <<= 1;
        for (int s = 0; s < 256; ++s) {
            if (lengths[s] != length) continue;
            if (next >> length) return false;
            uint16_t turned = 0;
            for (int bit = 0; bit < length; ++bit) turned |= (next >> bit & 1) << (length - 1 - bit);
            codes[s] = turned;
            ++next;
        }
    }
    return true;
}

// -- coding --------------------------------------------------------------------------------------------------------------------

// Room that ``code_words`` needs: it writes no more than what would be worth it, and a few bytes beyond.
inline size_t coded_room(size_t raw_bytes) { return CODED_LEAD_BYTES + raw_bytes - raw_bytes / 16 + 64; }

// Returns how many bytes it wrote; 0: it would not be much shorter.
inline size_t code_words(const char *raw, size_t raw_bytes, char *coded) {
    const size_t words = raw_bytes / 4;
    uint32_t counts[4][256] = {};
    uint8_t lengths[256];
    uint16_t codes[256];
    if (words < LEAST_WORDS) return 0;
    for (size_t i = 0; i < words / 4 * 4; i += 4) {
        for (int k = 0; k < 4; ++k) ++counts[k][exponent_of(word_at(raw, i + k))];
    }
    for (size_t i = words / 4 * 4; i < words; ++i) ++counts[0][exponent_of(word_at(raw, i))];
    for (int s = 0; s < 256; ++s) counts[0][s] += counts[1][s] + counts[2][s] + counts[3][s];
    huffman_lengths(counts[0], lengths);
    uint64_t bits = 0;
    for (int s = 0; s < 256; ++s) bits += static_cast<uint64_t>(counts[0][s]) * lengths[s];
    if (bits > words * 8 - words * 2) return 0;      // less than a sixteenth is saved
    assign_codes(lengths, codes);

    const uint64_t size = raw_bytes;
    std::memcpy(coded, &size, 8);
    for (int i = 0; i < 128; ++i) coded[8 + i] = static_cast<char>(lengths[2 * i] | lengths[2 * i + 1] << 4);
    uint32_t stream_bytes[4] = {};
    char *at = coded + CODED_LEAD_BYTES;
    for (int stream = 0; stream < STREAMS; ++stream) {
        const char *begin = at;
        uint64_t held = 0;
        unsigned held_bits = 0;
        size_t i = stream_begin(words, stream);
        const size_t end = stream_begin(words, stream + 1);
        const auto put = [&](uint32_t word) {
            held |= static_cast<uint64_t>(codes[exponent_of(word)]) << held_bits;
            held_bits += lengths[exponent_of(word)];
        };
        const auto flush = [&] {
            std::memcpy(at, &held, 8);
            at += held_bits / 8;
            held >>= held_bits & ~7u;
            held_bits &= 7;
        };
        for (; i + 4 <= end; i += 4) {
            for (int k = 0; k < 4; ++k) put(word_at(raw, i + k));
            flush();
        }
        for (; i < end; ++i) {
            put(word_at(raw, i));
            flush();
        }
        std::memcpy(at, &held, 8);
        at += held_bits > 0;
        stream_bytes[stream] = static_cast<uint32_t>(at - begin);
    }
    stream_bytes[3] = 0;
    std::memcpy(coded + 8 + 128, stream_bytes, 16);
    for (size_t i = 0; i < words; ++i, at += 3) {
        const uint32_t packed = word_at(raw, i) << 1 | word_at(raw, i) >> 31;
        std::memcpy(at, &packed, 4);
    }
    std::memcpy(at, raw + 4 * words, raw_bytes % 4);
    return at + raw_bytes % 4 - coded;
}

// -- decoding: of bytes that may be anything -----------------------------------------------------------------------------------

// What ``decode_words`` would write; 0: that is no coded message.
inline size_t decoded_bytes(const char *coded, size_t coded_bytes) {
    uint64_t size;
    if (coded_bytes < CODED_LEAD_BYTES) return 0;
    std::memcpy(&size, coded, 8);
    if (size / 4 < LEAST_WORDS || size / 4 * 3 > coded_bytes) return 0;
    return size;
}

// raw: room for ``decoded_bytes``, which is not 0. False: it is damaged.
inline bool decode_words(const char *coded, size_t coded_bytes, char *raw) {
    const size_t size = decoded_bytes(coded, coded_bytes), words = size / 4;
    uint8_t lengths[256];
    uint16_t codes[256] = {};
    uint16_t table[1 << LONGEST_CODE];               // symbol | bits << 8; 0 bits: no code begins so
    uint32_t stream_bytes[4];
    for (int i = 0; i < 128; ++i) {
        lengths[2 * i] = coded[8 + i] & 15;
        lengths[2 * i + 1] = static_cast<uint8_t>(coded[8 + i]) >> 4;
    }
    for (int s = 0; s < 256; ++s) {
        if (lengths[s] > LONGEST_CODE) return false;
    }
    if (!assign_codes(lengths, codes)) return false;
    std::memset(table, 0, sizeof table);
    for (int s = 0; s < 256; ++s) {
        if (lengths[s] == 0) continue;
        for (uint32_t i = codes[s]; i < 1u << LONGEST_CODE; i += 1u << lengths[s])
            table[i] = static_cast<uint16_t>(s | lengths[s] << 8);
    }
    std::memcpy(stream_bytes, coded + 8 + 128, 16);
    const size_t packed_bytes = 3 * words + size % 4;
    if (coded_bytes < CODED_LEAD_BYTES + packed_bytes) return false;
    const size_t all_streams = coded_bytes - CODED_LEAD_BYTES - packed_bytes;
    size_t begins[STREAMS + 1] = {};
    for (int stream = 0; stream < STREAMS - 1; ++stream) {
        begins[stream + 1] = begins[stream] + stream_bytes[stream];
        if (begins[stream + 1] > all_streams) return false;
    }
    begins[STREAMS] = all_streams;
    const char *rest = coded + CODED_LEAD_BYTES + all_streams;
    const char *streams = coded + CODED_LEAD_BYTES;
    size_t at_bit[STREAMS], ends[STREAMS];
    for (int stream = 0; stream < STREAMS; ++stream) {
        at_bit[stream] = 8 * begins[stream];
        ends[stream] = 8 * begins[stream + 1];
    }
    bool is_whole = true;
    const auto held_of = [&](int stream) {           // may look 8 bytes beyond its end: what is packed is longer, and follows
        uint64_t held;
        std::memcpy(&held, streams + at_bit[stream] / 8, 8);
        return held >> at_bit[stream] % 8;
    };
    const auto take = [&](int stream, uint64_t &held, size_t i, const char *packed) {
        const uint16_t entry = table[held & ((1u << LONGEST_CODE) - 1)];
        uint32_t turned;
        is_whole &= entry >> 8 > 0;
        held >>= entry >> 8;
        at_bit[stream] += entry >> 8;
        std::memcpy(&turned, packed, 4);
        turned = (turned & 0xffffff) | static_cast<uint32_t>(entry & 0xff) << 24;
        turned = turned >> 1 | turned << 31;
        std::memcpy(raw + 4 * i, &turned, 4);
    };
    const size_t quarter = words / STREAMS;
    size_t i = 0;
    for (; i + 4 < quarter; i += 4) {
        for (int stream = 0; stream < STREAMS; ++stream) {
            if (at_bit[stream] > ends[stream]) return false;
            uint64_t held = held_of(stream);
            for (size_t n = quarter * stream + i; n < quarter * stream + i + 4; ++n) take(stream, held, n, rest + 3 * n);
        }
    }
    for (int stream = 0; stream < STREAMS; ++stream) {
        const size_t end = stream_begin(words, stream + 1);
        for (size_t n = quarter * stream + i; n < end; ++n) {
            if (at_bit[stream] > ends[stream]) return false;
            uint64_t held = held_of(stream);
            char packed[4] = {};                     // nothing need follow the last
            std::memcpy(packed, rest + 3 * n, 3);
            take(stream, held, n, packed);
        }
        if (at_bit[stream] > ends[stream]) return false;
    }
    std::memcpy(raw + 4 * words, rest + 3 * words, size % 4);
    return is_whole;
}

}  // namespace intentpm
