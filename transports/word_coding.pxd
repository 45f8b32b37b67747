"""Bodies of messages in fewer bytes, where a link is slow; ``word_coding.hpp`` says how."""

cdef extern from "transports/word_coding.hpp" namespace "intentpm" nogil:
    size_t coded_room(size_t raw_bytes) noexcept
    size_t code_words(const char* raw, size_t raw_bytes, char* coded) noexcept
    size_t decoded_bytes(const char* coded, size_t coded_bytes) noexcept
    bint decode_words(const char* coded, size_t coded_bytes, char* raw) noexcept

cdef enum:
    LEAST_CODED_BYTES = 1 << 14      # of a frame
    MOST_CODED_BYTES = 1 << 25       # longer ones go as they are: they are coded at once, and nothing is sent meanwhile


cdef enum Coding:
    CODING_NONE = 0
    CODING_WORDS = 1
