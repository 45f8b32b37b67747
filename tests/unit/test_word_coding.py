"""Coded bodies: whatever is coded comes out as it was, and whatever is damaged harms nobody."""

import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intentpm.transports.framing import FrameParser, coded_body

LEAD_BYTES = 8 + 128 + 16


def decoded(coded: bytes) -> bytes:
    """As a reader of frames gives it. Raises ValueError."""
    prefix = struct.pack("<HBBHHQ", 0x5049, 2, 1, 0, 1, len(coded))  # as test_framing.py has it
    frames = FrameParser().feed(prefix + coded + bytes(-len(coded) % 8))
    assert len(frames) == 1
    return frames[0][2]


def normal(count: int, seed: int = 1, spread: float = 0.0) -> bytes:
    dice = np.random.default_rng(seed)
    return bytes((dice.normal(size=count) * np.exp(spread * dice.normal(size=count))).astype(np.float32))


def coded_of(body: bytes) -> bytes:
    coded = coded_body(body)
    assert coded is not None
    return coded


@pytest.mark.parametrize(
    ("body", "most"),
    [
        (normal(65536), 0.84),
        (normal(65536, spread=2.0), 0.90),
        (bytes(4 * 65536), 0.79),  # one exponent: a bit each
        (bytes(np.random.default_rng(1).integers(0, 1_000_000, 65536, np.uint32)), 0.80),
        (normal(1024) + b"abc", 0.95),
    ],
    ids=["normal", "many magnitudes", "zeros", "keys", "short, and a rest"],
)
def test_what_is_coded_is_shorter_and_comes_out_as_it_was(body: bytes, most: float) -> None:
    coded = coded_of(body)
    assert len(coded) <= most * len(body)
    assert decoded(coded) == body


def test_what_would_not_be_shorter_is_not_coded() -> None:
    assert coded_body(np.random.default_rng(1).bytes(1 << 18)) is None
    assert coded_body(normal(1023)) is None
    assert coded_body(b"") is None


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 255), st.integers(0, 12)), min_size=1, max_size=256, unique_by=lambda one: one[0]
    ),
    st.integers(1024, 6000),
    st.integers(0, 3),
    st.integers(0, 1 << 30),
)
def test_any_exponents(weights: dict[int, int], words: int, rest: int, seed: int) -> None:
    """Of any frequencies, up to some for which a Huffman code has longer codes than are allowed."""
    dice = np.random.default_rng(seed)
    shares = np.array([2.0**-weight for _, weight in weights])
    exponents = dice.choice([exponent for exponent, _ in weights], words, p=shares / shares.sum()).astype(np.uint32)
    body = bytes(
        exponents << 23 | dice.integers(0, 1 << 23, words, np.uint32) | dice.integers(0, 2, words, np.uint32) << 31
    )
    body += dice.bytes(rest)
    coded = coded_body(body)
    if coded is not None:
        assert decoded(coded) == body


def test_damage_is_an_error_or_other_numbers_of_the_same_length() -> None:
    body, dice = normal(4096) + b"ab", random.Random(1)
    coded, errors = coded_of(body), 0
    for _ in range(3000):
        damaged = bytearray(coded)
        for _ in range(dice.randint(1, 4)):
            damaged[dice.randrange(8, LEAD_BYTES if dice.random() < 0.5 else len(coded))] ^= 1 << dice.randrange(8)
        try:
            assert len(decoded(bytes(damaged))) == len(body)
        except ValueError:
            errors += 1
    assert errors > 1000


@pytest.mark.parametrize("length", [0, 1, LEAD_BYTES - 1, LEAD_BYTES, LEAD_BYTES + 100, 10_000])
def test_what_is_cut_off_or_says_another_length_is_an_error(length: int) -> None:
    coded = coded_of(normal(4096))
    with pytest.raises(ValueError, match="coding"):
        decoded(coded[:length])
    for size in (0, 4095, 1 << 20, 1 << 40, (1 << 64) - 1):
        with pytest.raises(ValueError, match="coding"):
            decoded(size.to_bytes(8, "little") + coded[8:])
