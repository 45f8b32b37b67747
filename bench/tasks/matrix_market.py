"""Sparse matrices in MatrixMarket's coordinate format, read by SciPy once it is known that SciPy will read them right.

SciPy takes what begins like a number for the number ("4,5" is 4, "1.0D+02" is 1) and does not look at the rest of the
line. So every line is matched against what the format allows first. Those that do not match are mended, or refused with
their number.
"""

import io
import re
from pathlib import Path
from typing import Any

from intentpm.bench.tasks.data_error import DataError
from intentpm.bench.tasks.text_file import STRAY, open_text, shown

BANNER = "%%MatrixMarket matrix coordinate"
REAL, PATTERN = "real", "pattern"
FIELDS = {"real": REAL, "double": REAL, "integer": REAL, "unsigned-integer": REAL, "pattern": PATTERN}
"""Whole numbers are read as real ones too, so that a fraction among them is not cut off."""
SYMMETRIES = ("general", "symmetric", "skew-symmetric")
NEED = {
    REAL: "need row, column and value (a finite number), separated by blanks",
    PATTERN: "need row and column, separated by a blank",
}

# Possessive: no line that matched is looked at again.
_PAIR = r"[ \t]*+[0-9]++[ \t]++[0-9]++"
_NUMBER = r"-?(?:[0-9]++\.?[0-9]*+|\.[0-9]++)(?:[eE][+-]?[0-9]++)?"
_ENTRY = {REAL: rf"{_PAIR}[ \t]++{_NUMBER}[ \t]*+", PATTERN: rf"{_PAIR}[ \t]*+"}
_ENTRIES = {field: re.compile(rf"(?:(?:{entry})?+\n)*+") for field, entry in _ENTRY.items()}
_FIRST_WORDS = re.compile(r"^[ \t]*([^%\s].*)$", re.MULTILINE)


def read_matrix_market(path: Path) -> tuple[Any, list[str]]:
    """The matrix as a SciPy coordinate array, and what was mended, as lines for people. Raises DataError."""
    import scipy.io

    with open_text(path) as file:
        text = file.read()
    text += "\n"
    start = len(text) - len(text.lstrip(STRAY))
    end = text.find("\n", start)
    field, symmetry = _field_and_symmetry(path, text[start:end])
    size = _FIRST_WORDS.search(text, end) if end >= 0 else None
    if size is None:
        raise DataError(path, "has no line with the numbers of rows, columns and entries")
    head = f"{BANNER} {field} {symmetry}\n" + "\n" * text.count("\n", 0, size.start() - 1)
    line = head.count("\n") + 1
    rows_columns_entries = _size(path, line, size[1], text.count("\n", size.end()))
    entries, mended = _entries(path, line, text, size.end() + 1, field)
    try:
        contents = io.BytesIO(f"{head}{rows_columns_entries}\n{entries}".encode())
        matrix = scipy.io.mmread(contents, spmatrix=False)
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise DataError(path, f"is not a readable MatrixMarket file ({error})") from error
    return matrix, [f"{path.name}: lines with entries that were mended or left out: {mended:,}"] if mended else []


def _field_and_symmetry(path: Path, banner: str) -> tuple[str, str]:
    words = banner.strip(STRAY).lower().split()
    if words[:2] != BANNER.lower().split()[:2]:
        raise DataError(
            path, f"is neither npz (by its name) nor MatrixMarket, which begins with {BANNER!r}: {shown(banner)}"
        )
    if words[2:3] == ["array"]:
        raise DataError(path, "is a dense MatrixMarket array; ratings need the coordinate format")
    if len(words) != 5 or words[2] != "coordinate" or words[3] not in FIELDS or words[4] not in SYMMETRIES:
        kinds = f"{', '.join(FIELDS)}; {', '.join(SYMMETRIES)}"
        raise DataError(path, f"its first line needs one each of these after {BANNER!r}: {kinds}: {shown(banner)}")
    return FIELDS[words[3]], words[4]


def _size(path: Path, line: int, words: str, lines_below: int) -> str:
    numbers = words.partition("%")[0].strip(STRAY).split()
    if len(numbers) != 3 or not all(number.isascii() and number.isdigit() for number in numbers):
        raise DataError(path, f"line {line}: need the numbers of rows, columns and entries: {shown(words)}")
    if int(numbers[2]) > lines_below:
        raise DataError(path, f"line {line} says {numbers[2]} entries, but fewer lines follow; is it cut short?")
    return " ".join(numbers)


def _entries(path: Path, line: int, text: str, start: int, field: str) -> tuple[str, int]:
    """The lines from ``start`` on, the first of which follows ``line``, as SciPy reads them; how many it did not."""
    fine = _ENTRIES[field].match(text, start)
    odd = fine.end() if fine else start
    if odd >= len(text):
        return text[start:], 0
    entry = re.compile(_ENTRY[field])
    line += text.count("\n", start, odd)
    lines, mended = text[odd:].split("\n"), 0
    for i, before in enumerate(lines):
        if entry.fullmatch(before) or not before:
            continue
        lines[i] = _mended(before)
        if lines[i] and not entry.fullmatch(lines[i]):
            raise DataError(path, f"line {line + i + 1}: {NEED[field]}: {shown(before)}")
        mended += bool(before.strip(STRAY))
    return text[start:odd] + "\n".join(lines), mended


def _mended(line: str) -> str:
    """Without comments and stray white space, numbers as C writes them."""
    words = line.partition("%")[0].strip(STRAY).split()
    if len(words) == 3:
        words[2] = words[2].removeprefix("+").replace("D", "e").replace("d", "e")
    return " ".join(words)
