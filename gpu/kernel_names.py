"""Which kernels of ``kernels.cu`` serve rows of one layout, by the names under which NVRTC is asked for them."""

from dataclasses import dataclass

DTYPES = ("Float32", "Float64", "Float16", "Bfloat16", "Int32", "Int64")
"""In the order of Table.DTYPES."""
ITEM_BYTES = (4, 8, 2, 2, 4, 8)
RULES = ("Sgd", "Adagrad", "RowwiseAdagrad", "Adam", "PartialRowwiseAdam")
"""In the order of RowOptimiser.rule."""
_SCOPE = "intentpm::gpu::"


@dataclass(frozen=True)
class RowLayout:
    """How a row lies in its slab.

    ``dtype``: a number in DTYPES. ``items`` and ``row_bytes``: of the weights. ``stored_bytes``: with the optimiser's
    state, which begins at ``state_offset``. ``stride_bytes``: from one row to the next, a multiple of 16 or a power of
    two.
    ``rule``: a number in RULES, None without an optimiser.
    """

    dtype: int
    items: int
    stored_bytes: int
    stride_bytes: int
    rule: int | None = None
    state_offset: int = 0

    @property
    def row_bytes(self) -> int:
        return self.items * ITEM_BYTES[self.dtype]

    @property
    def is_float(self) -> bool:
        return self.dtype < 4

    @property
    def added_by_memory(self) -> bool:
        """Whether the device has its atomic addition; else deltas of one row are summed first."""
        return ITEM_BYTES[self.dtype] >= 4

    @property
    def sum_bytes(self) -> int:
        """Of a sum of rows, in the type that they are computed in."""
        return self.items * max(4, ITEM_BYTES[self.dtype])

    @property
    def pack(self) -> int:
        """Items that a lane takes at once: 16 bytes of them where everything is aligned so, else one."""
        aligned = self.row_bytes | self.stride_bytes | (self.state_offset if self.rule is not None else 0)
        return 1 if aligned % 16 else 16 // ITEM_BYTES[self.dtype]


def unit_bytes(*sizes: int) -> int:
    """The largest unit, of 16 bytes at most, that all sizes are multiples of."""
    together = 16
    for size in sizes:
        together |= size
    return together & -together


def kernel_names(layout: RowLayout) -> dict[str, str]:
    """What is done to rows -> the kernel that does it."""
    weights = unit_bytes(layout.row_bytes, layout.stride_bytes)
    stored = unit_bytes(layout.stored_bytes, layout.stride_bytes)
    dtype = _SCOPE + DTYPES[layout.dtype]
    packed = f"<{dtype}, {layout.pack}>"
    names = {
        "gather": f"gather_rows<{weights}>",
        "gather_stored": f"gather_rows<{stored}>",
        "set": f"set_rows<{weights}>",
        "set_stored": f"set_rows<{stored}>",
        "claim": "claim_rows",
        "release": "release_rows",
        "find_slots": "find_slots",
        "enter_slots": "enter_slots",
    }
    if layout.is_float:
        names["open_sums"] = f"open_sums<{dtype}>"
        names["add_to_sums"] = f"add_to_sums{packed}"
    names["add"] = f"add_rows{packed}" if layout.added_by_memory else f"add_summed_rows{packed}"
    if layout.rule is not None:
        names["step"] = f"step_rows<{_SCOPE}{RULES[layout.rule]}, {dtype}, {layout.pack}>"
    return {what: _SCOPE + name for what, name in names.items()}
