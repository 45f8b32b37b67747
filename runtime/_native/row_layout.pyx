"""How a table's row lies in its slab, and what steps it: made from an optimiser of ``runtime/optimisers.py``.

Called by ``Table`` when it is made; nothing of it changes afterwards.
"""

from libc.math cimport INFINITY

import numpy as np

from intentpm.foundation.errors import DtypeError
from intentpm.runtime.optimisers import COUNTS, PER_ITEM

from intentpm.runtime._native.row_optimiser cimport DECAY_DECOUPLED, DECAY_L2, DECAY_NONE, RowOptimiser

cdef extern from "runtime/_native/optimiser_kernels.hpp" namespace "intentpm" nogil:
    bint choose_kernels(
        RowOptimiser* optimiser, int rule, int dtype, size_t items, bint at_random, bint by_calls) noexcept

WEIGHTS = "weights"


def stored_dtype(dtype, row_shape, optimiser) -> np.dtype:
    """Of a whole row: a structure of ``weights`` and the optimiser's state by name.

    State is float64 for float64 weights, float32 for all others, COUNTS uint32. It begins where its numbers are aligned,
    and the whole is a multiple of their size, so that it is aligned in a message of several rows too.
    """
    real = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    names, formats, offsets = [WEIGHTS], [(dtype, row_shape)], [0]
    end = _padded(np.dtype(formats[0]).itemsize, real.itemsize)
    for name, extent in optimiser.kept_state:
        number = np.dtype(np.uint32) if name in COUNTS else real
        entry = (number, row_shape if extent == PER_ITEM else ())
        names.append(name)
        formats.append(entry)
        offsets.append(end)
        end += np.dtype(entry).itemsize
    size = _padded(end, real.itemsize) if optimiser.kept_state else np.dtype(formats[0]).itemsize
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


def initial_state(stored, optimiser):
    """The bytes of a row whose state has not been stepped yet (its weights are zeros), but for ROUNDING, which each row has of
    its own; None when all are zero.
    """
    begun = getattr(optimiser, "initial_accumulator", 0.0)
    if begun == 0:
        return None
    row = np.zeros(1, stored)
    row["sum"] = begun
    return row.view(np.uint8)


def _padded(size: int, alignment: int) -> int:
    return (size + alignment - 1) // alignment * alignment


cdef int describe_optimiser(RowOptimiser* out, object optimiser, int dtype_code, object stored, size_t items) except -1:
    """Fills ``out``. Raises DtypeError when such weights cannot be stepped."""
    beta1, beta2 = getattr(optimiser, "betas", (0.0, 0.0))
    names = stored.names
    out.state_offset = stored.fields[names[1]][1] if len(names) > 1 else stored.itemsize
    out.lr = optimiser.lr
    out.eps = getattr(optimiser, "eps", 0.0)
    out.beta1 = beta1
    out.beta2 = beta2
    out.weight_decay = optimiser.weight_decay
    if optimiser.weight_decay_mode == "l2":
        out.decay = DECAY_L2
    elif optimiser.weight_decay_mode == "decoupled":
        out.decay = DECAY_DECOUPLED
    else:
        out.decay = DECAY_NONE
    out.max_norm = _limit(optimiser.max_norm)
    out.clip_value = _limit(optimiser.clip_value)
    out.clip_norm = _limit(optimiser.clip_norm)
    if not choose_kernels(
            out, optimiser.rule, dtype_code, items, optimiser.rounds_at_random, optimiser.corrects_by_calls):
        weights = stored.fields[WEIGHTS][0].base
        raise DtypeError(
            f"weights of {weights} cannot be rounded at random: use float16 or bfloat16, or rounding=\"nearest\""
            if optimiser.rounds_at_random else
            f"a table with an optimizer cannot hold {weights}: use a floating-point dtype")
    return 0


cdef double _limit(object given):
    return INFINITY if given is None else given
