"""Text as people write it: encodings, line ends, compression, and what is said of files that cannot be read."""

import bz2
import codecs
import gzip
import lzma

import pytest

from intentpm.bench.tasks.data_error import DataError
from intentpm.bench.tasks.text_file import open_text

TEXT = "São Paulo\tb\u2028c\u2029\u0085\x0b\x0c\x1c\x1d\x1ed\n\n'quoted\" \n日本\U0001f600 end"
PACKERS = {"plain": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


def lines_of(path):
    with open_text(path) as text:
        return list(text)


def written(tmp_path, contents, name="t.txt"):
    path = tmp_path / name
    path.write_bytes(contents)
    return path


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_the_same_lines_however_written(tmp_path, encoding, end, packer):
    contents = PACKERS[packer](TEXT.replace("\n", end).encode(encoding))
    assert lines_of(written(tmp_path, contents)) == [
        TEXT.split("\n")[0] + "\n", "\n", TEXT.split("\n")[2] + "\n", TEXT.split("\n")[3],
    ]  # fmt: skip


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE])
def test_big_endian(tmp_path, mark):
    encoding = {codecs.BOM_UTF16_BE: "utf-16-be", codecs.BOM_UTF32_BE: "utf-32-be"}[mark]
    assert lines_of(written(tmp_path, mark + "aé\n".encode(encoding))) == ["aé\n"]


def test_an_empty_file(tmp_path):
    assert lines_of(written(tmp_path, b"")) == []


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_what_is_not_utf8_is_found_by_line(tmp_path, end, packer):
    lines = [b"plain"] * 70_000 + [b"Malm\xf6"] + [b"more"] * 10
    with pytest.raises(DataError, match=r"t.txt: line 70001 is not UTF-8 text; convert it, .*iconv") as e:
        lines_of(written(tmp_path, PACKERS[packer](end.join(lines))))
    assert str(tmp_path) in e.value.message


def test_broken_utf16(tmp_path):
    with pytest.raises(DataError, match=r"line 2 is not UTF-16"):
        lines_of(written(tmp_path, "ab\ncd\n".encode("utf-16")[:-3]))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("ab\ncd\n".encode("utf-16-le"), "is no text .or UTF-16 without a byte order mark"),
        (b"\x28\xb5\x2f\xfd\x00", "is compressed by zstd; unpack it"),
        (b"PK\x03\x04\x14\x00", "is a zip archive; unpack it"),
        (gzip.compress(TEXT.encode() * 999)[:-20], "cannot be read"),
        (lzma.compress(TEXT.encode() * 999)[:-20], "cannot be read"),
        (bz2.compress(TEXT.encode() * 999)[:-20], "cannot be read"),
        (b"BZhello, not bzip2", "cannot be read"),
        (b"\x1f\x8b\x08", "cannot be read"),
    ],
)
def test_files_that_are_no_text(tmp_path, contents, message):
    path = written(tmp_path, contents)
    with pytest.raises(DataError, match=message) as e:
        lines_of(path)
    assert e.value.message.startswith(f"{path}: ")
