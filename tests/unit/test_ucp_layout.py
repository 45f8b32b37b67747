"""UCP's interface as ``transports/ucp.pxd`` declares it, compared with UCX's own headers by the C compiler."""

import importlib.util
import pathlib
import re
import shutil
import subprocess

import pytest

_PXD = pathlib.Path(__file__).parents[2] / "transports" / "ucp.pxd"
_HEADER_NAMES = {"ucp_request_callback_t": None, "UcpFunctions": None}
"""Structures of ours that UCX's headers do not name; what they hold is covered by the structure around them."""
_OWN_TYPES = {"uint64_t", "uint32_t", "size_t", "int", "unsigned int", "unsigned long", "char", "ucs_status_t"}


def _include_folder():
    spec = importlib.util.find_spec("libucx")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the libucx wheel, whose headers this compares with, is not installed")
    folder = pathlib.Path(spec.submodule_search_locations[0]) / "include"
    if not (folder / "ucp" / "api" / "ucp.h").exists():
        pytest.skip(f"no UCX headers in {folder}")
    return folder


def _structures(text):
    """name -> [(type, field)], with our spelling of types made C."""
    found = {}
    for match in re.finditer(r"^cdef struct (\w+):\n((?:    .*\n)+)", text, re.M):
        if match[1] not in _HEADER_NAMES:
            fields = [line.split("#")[0].strip() for line in match[2].splitlines()]
            found[match[1]] = [re.fullmatch(r"(.+?)\s*(\w+)((?:\[\d+\])?)", field).groups() for field in fields]
    return found


def _constants(text):
    block = re.search(r"^cdef enum:\n((?:    .*\n|\n)+)", text, re.M)[1]
    return re.findall(r"^    (\w+) = (.+)$", block, re.M)


def _declaration(ctype, field, extent):
    # Pointers and callbacks all have one size: what they point to does not move a field.
    if "*" in ctype or ctype.endswith(("_callback_t", "_cb_t", "_h")):
        ctype = "void*"
    elif ctype not in _OWN_TYPES:
        ctype = f"own_{ctype}"
    return f"{ctype} {field}{extent};"


def _program(text):
    lines = ["#include <stddef.h>", "#include <ucp/api/ucp.h>"]
    for name, value in _constants(text):
        lines.append(f'_Static_assert((long long){name} == ({value}), "{name}");')
    structures = _structures(text)
    lines.append("typedef union { void* send; } own_ucp_request_callback_t;")
    for name, fields in structures.items():
        body = " ".join(_declaration(*field) for field in fields)
        lines.append(f"typedef struct {{ {body} }} own_{name};")
        lines += [
            f'_Static_assert(offsetof(own_{name}, {field}) == offsetof({name}, {field}), "{name}.{field}");'
            for _, field, _ in fields
        ]
        # Later versions append fields, which they touch only where a mask asks for them.
        lines.append(f'_Static_assert(sizeof(own_{name}) <= sizeof({name}), "size of {name}");')
    lines.append('_Static_assert(sizeof(ucs_status_t) == 1, "ucs_status_t is int8_t");')
    return "\n".join(lines)


def _compile(program, include, tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = tmp_path / "layout.c"
    source.write_text(program)
    return subprocess.run(
        [compiler, "-std=c11", "-fsyntax-only", f"-I{include}", str(source)], capture_output=True, text=True, timeout=60
    )


def test_declarations_match_the_headers(tmp_path):
    text = _PXD.read_text()
    assert len(_structures(text)) >= 12
    assert len(_constants(text)) >= 38
    result = _compile(_program(text), _include_folder(), tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [
        ("    uint32_t flags\n    void* request\n", "    uint64_t flags\n    void* request\n", "ucp_request_param_t"),
        ("UCS_ERR_BUSY = -15", "UCS_ERR_BUSY = -14", "UCS_ERR_BUSY"),
        ("    size_t am_alignment\n", "    int am_alignment\n    int more\n", "more"),
    ],
)
def test_a_wrong_declaration_is_found(before, after, names, tmp_path):
    text = _PXD.read_text()
    assert before in text
    result = _compile(_program(text.replace(before, after)), _include_folder(), tmp_path)
    assert result.returncode != 0
    assert names in result.stderr
