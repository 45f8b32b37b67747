"""reports.py [--planted asan|tsan] FOLDER: shows what sanitizers wrote to FOLDER; fails if there is anything.

Leaks count where one of our modules called the allocator: numpy and CPython keep objects for ever. With --planted it
fails unless every planted mistake was found.
"""

import argparse
import re
import sys
from pathlib import Path

OURS = "/intentpm/"
"""In the path of every module of ours, as frames show it."""
EXPECTED = {
    "asan": ("heap-buffer-overflow", "misaligned address", "signed integer overflow", "leak of 384 byte"),
    "tsan": ("data race",),
}


def findings(text: str) -> str:
    """``text`` of one file without leaks of others; of standard error, what a sanitizer wrote there."""
    head, *leaks = re.split(r"^(?=(?:Direct|Indirect) leak of )", text, flags=re.MULTILINE)
    ours = [leak for leak in leaks if OURS in caller(leak)]
    says_something = re.search(r"runtime error:|SUMMARY:|ERROR: (?!LeakSanitizer: detected)", head)
    return head + "".join(ours) if ours or says_something else ""


def caller(leak: str) -> str:
    """Who called the allocator: frame 1."""
    frame = re.search(r"^ *#1 .*$", leak, re.MULTILINE)
    return frame[0] if frame else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--planted", choices=EXPECTED)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    found = [findings(path.read_text(errors="replace")) for path in sorted(arguments.folder.iterdir())]
    text = "\n".join(report for report in found if report)
    if arguments.planted:
        missing = [mistake for mistake in EXPECTED[arguments.planted] if mistake not in text]
        if missing:
            print(f"{text}\nsanitizers: planted mistakes were not found: {', '.join(missing)}", file=sys.stderr)
        return bool(missing)
    if text:
        print(f"{text}\nsanitizers: the reports above are in {arguments.folder}", file=sys.stderr)
        return 1
    print("sanitizers: nothing to report")
    return 0


if __name__ == "__main__":
    sys.exit(main())
