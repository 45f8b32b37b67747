"""Text files as people make them: with byte order marks, any line ends, compressed.

A line ends with LF, CR LF or CR, never with another character that Unicode calls a line separator: those may be inside
a name.
"""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from intentpm.bench.tasks.data_error import DataError

COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz")
_OPENERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_UNREADABLE = {b"\x28\xb5\x2f\xfd": "compressed by zstd", b"PK\x03\x04": "a zip archive"}
# The marks of UTF-32 first: one begins like that of UTF-16.
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}  # fmt: skip
_LOOK_AT_BYTES = 4096

STRAY = "".join(character for character in map(chr, range(0x3001)) if character.isspace()) + "\ufeff\u200b\u2060\x1a"
"""What does not belong to a word it precedes or follows: white space of any kind, marks that nobody sees (of joined
files that each began with a byte order mark), the end-of-file character of DOS."""


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    r"""The file's text, unpacked if it is compressed; every line ends with "\n".

    UTF-8, or UTF-16 or 32 where a byte order mark says so. Raises DataError, also for what is found while the caller
    reads.
    """
    try:
        with _unpacked(path) as packed, io.BufferedReader(packed) as file:
            encoding = _encoding(path, file.peek(_LOOK_AT_BYTES)[:_LOOK_AT_BYTES])
            with io.TextIOWrapper(file, encoding=encoding) as text:
                yield text
    except UnicodeDecodeError as error:
        raise DataError(path, f"{_place(path, error.encoding)} is not {error.encoding.upper()} text; {_HOW}") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(path, f"cannot be read ({error})") from error


_HOW = "convert it, for example by iconv -f latin1 -t utf-8"


def _unpacked(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(max(map(len, _OPENERS)))
    for magic, what in _UNREADABLE.items():
        if start.startswith(magic):
            raise DataError(path, f"is {what}; unpack it, or compress it as {', '.join(COMPRESSED_SUFFIXES)}")
    for magic, opener in _OPENERS.items():
        if start.startswith(magic):
            return opener(path)
    return path.open("rb", buffering=0)


def _encoding(path: Path, start: bytes) -> str:
    for mark, encoding in _ENCODINGS.items():
        if start.startswith(mark):
            return encoding
    if b"\0" in start:
        raise DataError(path, "is no text (or UTF-16 without a byte order mark); save it as UTF-8")
    return "utf-8"


def _place(path: Path, encoding: str) -> str:
    """Which line cannot be decoded: it is looked for only now, so that reading is fast."""
    broken, errors = ("\udc80", "\udcff"), "surrogateescape"
    if "8" not in encoding:
        broken, errors = ("\ufffd", "\ufffd"), "replace"
    with _unpacked(path) as packed, io.TextIOWrapper(packed, encoding=encoding, errors=errors) as text:
        for number, line in enumerate(text, 1):
            if any(broken[0] <= character <= broken[1] for character in line):
                return f"line {number}"
    return "its end"


def shown(line: str) -> str:
    """The line as an error message shows it."""
    return ascii(line.strip(STRAY)[:60])
