"""The frame parser: known answers, any split of a valid stream, any damage to one."""

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intentpm.transports.framing import FrameParser

PREFIX = struct.Struct("<HBBHHQ")
MAGIC, VERSION = 0x5049, 2
Frame = tuple[int, bytes, bytes]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def write(frame: Frame) -> bytes:
    message_id, header, body = frame
    return PREFIX.pack(MAGIC, VERSION, message_id, len(header), 0, len(body)) + padded(header) + padded(body)


def parse(stream: bytes) -> tuple[list[Frame], str]:
    """The reference: frames of ``stream`` and what is wrong with what follows them ("" when it is only incomplete)."""
    frames: list[Frame] = []
    while len(stream) >= PREFIX.size:
        magic, version, message_id, header_bytes, coding, body_bytes = PREFIX.unpack_from(stream)
        checks = {
            "magic": magic != MAGIC,
            "version": version != VERSION,
            "coding": coding > 1,
            "header": header_bytes > 256,
            "body": body_bytes > 1 << 32,
        }
        wrong = [name for name, failed in checks.items() if failed]
        if wrong:
            return frames, wrong[0]
        body_at = PREFIX.size + -(-header_bytes // 8) * 8
        end = body_at + -(-body_bytes // 8) * 8
        if len(stream) < end:
            return frames, ""
        if coding:  # nothing here is
            return frames, "coding"
        header = stream[PREFIX.size : PREFIX.size + header_bytes]
        frames.append((message_id, header, stream[body_at : body_at + body_bytes]))
        stream = stream[end:]
    return frames, ""


def feed(parts: list[bytes]) -> tuple[list[Frame], str]:
    parser, frames = FrameParser(), []
    for part in parts:
        try:
            frames += parser.feed(part)
        except ValueError as error:
            return frames, str(error)
    return frames, ""


def split(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[begin:end] for begin, end in itertools.pairwise(edges)]


bodies = st.one_of(
    st.binary(max_size=40),
    st.builds(lambda seed, size: bytes([seed, 255 - seed]) * size, st.integers(0, 255), st.integers(0, 60_000)),
)
frames_of_any_size = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=256), bodies), max_size=8)
cuts = st.lists(st.integers(0, 1 << 20), max_size=30)


def test_known_answer() -> None:
    stream = (
        bytes.fromhex("4950 02 07 0300 0000 0500000000000000".replace(" ", ""))
        + b"abc"
        + bytes(5)
        + b"hello"
        + bytes(3)
    )
    assert FrameParser().feed(stream) == [(7, b"abc", b"hello")]
    assert write((7, b"abc", b"hello")) == stream


@settings(max_examples=300, deadline=None)
@given(frames_of_any_size, cuts)
def test_any_split_of_a_valid_stream_gives_its_frames(frames: list[Frame], cuts: list[int]) -> None:
    stream = b"".join(map(write, frames))
    assert feed(split(stream, cuts)) == (frames, "")


@settings(max_examples=50, deadline=None)
@given(frames_of_any_size)
def test_byte_by_byte(frames: list[Frame]) -> None:
    stream = b"".join(map(write, frames))[:3000]
    assert feed([stream[index : index + 1] for index in range(len(stream))]) == parse(stream)


@settings(max_examples=600, deadline=None)
@given(
    frames_of_any_size, cuts, st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_damage_gives_what_the_reference_gives(
    frames: list[Frame], cuts: list[int], damage: list[tuple[int, int]]
) -> None:
    """No crash, no frame made of bytes that were not received, and the same verdict."""
    stream = bytearray(b"".join(map(write, frames)) + bytes(16))
    for position, value in damage:
        stream[position % len(stream)] = value
    expected_frames, expected_error = parse(bytes(stream))
    got_frames, got_error = feed(split(bytes(stream), cuts))
    assert (expected_error in got_error) if expected_error else got_error == ""
    # A part's frames are not returned when that part ends in an error.
    assert got_frames == expected_frames[: len(got_frames)]
    if not expected_error:
        assert got_frames == expected_frames


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=3000), cuts)
def test_garbage(stream: bytes, cuts: list[int]) -> None:
    expected_frames, expected_error = parse(stream)
    got_frames, got_error = feed(split(stream, cuts))
    assert got_frames == expected_frames[: len(got_frames)]
    assert bool(got_error) == bool(expected_error)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ((0x4950, VERSION, 0, 0, 0, 0), "magic"),
        ((MAGIC, VERSION + 1, 0, 0, 0, 0), "version"),
        ((MAGIC, VERSION, 0, 0, 2, 0), "coding"),
        ((MAGIC, VERSION, 0, 0, 1, 0), "coding"),
        ((MAGIC, VERSION, 0, 257, 0, 0), "header"),
        ((MAGIC, VERSION, 0, 0xFFFF, 0, 0), "header"),
        ((MAGIC, VERSION, 0, 0, 0, (1 << 32) + 1), "body"),
        ((MAGIC, VERSION, 0, 0, 0, (1 << 64) - 1), "body"),
    ],
)
def test_malformed_prefix_is_named_and_stays_an_error(fields: tuple[int, ...], what: str) -> None:
    parser = FrameParser()
    assert parser.feed(write((1, b"good", b""))) == [(1, b"good", b"")]
    with pytest.raises(ValueError, match=what):
        parser.feed(PREFIX.pack(*fields))
    with pytest.raises(ValueError, match=what):
        parser.feed(write((1, b"good", b"")))


def test_a_huge_announced_body_costs_no_memory_until_it_arrives() -> None:
    parser = FrameParser()
    before = resident_bytes()
    assert parser.feed(PREFIX.pack(MAGIC, VERSION, 1, 0, 0, 1 << 32) + bytes(100)) == []
    assert resident_bytes() - before < 16 << 20


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096
