"""Where a row is, of a table that has a tier: in ``TableState.rows``, on a device, or the same in both.

A row of a table without a tier is in ``rows``. With one (``TableState.tier``), each slot says whether the device has its row,
and whether the one in ``rows`` is out of date. Batches of workers are served by the device, which is sent what it lacks; all
else, one row at a time, happens in ``rows``, and asks for the row first:

    in ``rows``  -a batch has the key-> in both  -written by the device-> on the device  -needed in ``rows``-> in both
    in both      -written in ``rows``-> in ``rows``

A device that has room for some of the rows alone has more states: ``tiered_rows.pxd``.

Guarantees
    * A row that is entered for reading or writing is in ``rows``, and stays so until its key's word is unlocked.
    * Who writes it there makes what the device has void.
Assumptions
    * What the slot says changes while its key's word is LOCKED, or before the key can be found. So a word is never held while a
      row is brought: who finds the row away leaves the word, has it brought, and looks again.
    * Order of locks: that of the device's rows, then a key's word.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from intentpm.runtime._native.mutations cimport MUTATION_ROW_LEFT_AWAY, MUTATION_WRITE_UNNOTED, is_planted
from intentpm.runtime._native.state cimport KeyPlace, lock_word, unlock_unchanged
from intentpm.runtime._native.table_state cimport ROW_AWAY, TableState

# What is going to be done with a row.
cdef enum RowUse:
    ROW_READ
    ROW_WRITE                    # some of it
    ROW_OVERWRITE                # all of it


cdef inline bint is_home(TableState* table, const KeyPlace* place, RowUse use) noexcept nogil:
    """Of a table with a tier, the key's word LOCKED: whether the row can be used so in ``rows``. Then the use is noted."""
    cdef uint8_t* where = &table.tier.where[place.slot]
    if where[0] & ROW_AWAY and use != ROW_OVERWRITE and not is_planted(MUTATION_ROW_LEFT_AWAY):
        return False
    if use != ROW_READ and not is_planted(MUTATION_WRITE_UNNOTED):
        if where[0] and table.tier.lacks != NULL:
            table.tier.lacks(table, place - table.places)
        where[0] = 0
    return True


cdef inline uint32_t lock_row(TableState* table, int64_t key, RowUse use) noexcept nogil:
    """``lock_word`` of a key that is here, and stays here, whose row is to be used in ``rows``."""
    cdef KeyPlace* place = &table.places[key]
    cdef uint32_t seen = lock_word(&place.word)
    if table.tier != NULL:
        while not is_home(table, place, use):
            unlock_unchanged(&place.word, seen)
            table.tier.bring_home(table, key)
            seen = lock_word(&place.word)
    return seen
