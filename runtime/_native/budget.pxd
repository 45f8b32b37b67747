"""What this rank may take of memory (``init(memory_budget=...)``), and what it has taken.

    tables      3/4  per key and slot, rows owned here, copies with what they may have to keep for their owners (``taken``)
    messages    1/8  bodies that are sent, or being answered: bounded per peer, by windows that all ranks have alike
    saves       1/16 rows set apart for a checkpoint (snapshot.pxd); what tables have left may be used, too
    intents     1/32 signalled and not over
    the rest    buffers of connections, lists

Under pressure copies go first: none is asked for that does not fit, and while more is taken than may be, those that are here
are given up (holder.pxd). Then intents are acted on later (``ahead_256``), and are forgotten where too many wait. Then service
slows: windows are as narrow as the messages' part wants them, and writes of this rank wait a little while a checkpoint is
behind. What still does not fit is refused: a table, when it is made; a save, which leaves the checkpoint before.

Guarantees
    * Nobody waits for memory that another rank has to give: so nothing waits in a circle.
    * Memory counts from when it is promised until it is back with the system, whether or not a row lies in it.
Called by ``Engine`` (tables), ``Holder`` (copies), ``Cuts`` (saves), workers (intents) and ``RankMemory`` (what Python asks).
Guarded by: engine lock, unless said.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t
from libcpp.vector cimport vector

from intentpm.runtime._native.snapshot cimport CopyRoom
from intentpm.runtime._native.table_state cimport TableState


cdef enum:
    LIST_BYTES = 32              # of lists, per copy
    HOLDING_LISTS_BYTES = 48     # per holding (news.pxd): in two lists, each with room for twice as many
    INTENT_BYTES = 128           # per intent, besides its keys

# For workers, which hold no lock.
cdef struct IntentRoom:
    int64_t most_bytes           # set once. 0: no limit
    int64_t held_bytes           # atomic relaxed
    int64_t refused_keys         # atomic relaxed
    int64_t ahead_256            # atomic relaxed: how much of its horizon a worker uses, in 256ths


@cython.final
cdef class Budget:
    cdef uint32_t size
    cdef public int64_t limit_bytes              # 0: none. Tests change it, and the next
    cdef public int64_t table_bytes
    cdef readonly int64_t message_bytes
    cdef readonly int64_t save_bytes
    cdef vector[TableState*] tables
    cdef readonly int64_t claimed_bytes          # for a table that is being made
    cdef readonly int64_t kept_bytes             # by Python, for others
    cdef IntentRoom intents
    cdef CopyRoom copies                         # atomic: snapshot.pxd
    # Windows. Without a budget, and until the ranks have agreed, they are as wide as is useful.
    cdef size_t peer_bytes                       # of messages, per peer
    cdef size_t chunk_bytes                      # of rows per message
    cdef readonly uint32_t window_requests       # open per destination
    cdef size_t round_bytes                      # of what was written, per round; what is left waits for the next
    cdef size_t answer_bytes                     # of rows that a round asks for, the same

    # Of tables, in bytes; includes what is claimed and kept.
    cdef int64_t taken(self) noexcept nogil
    # Promises memory for one more copy or row of the table. False: it does not fit.
    cdef bint promise(self, TableState* table) noexcept nogil
    # What is taken at least: all copies are gone.
    cdef int64_t least(self) noexcept nogil
    # More is taken than may be: by how much. 0: it is not.
    cdef int64_t excess(self) noexcept nogil
    # Copies can be given up, or free slots given back to the system.
    cdef bint can_shrink(self) noexcept nogil
    # Intents are acted on as far ahead as there is room for copies.
    cdef void set_ahead(self) noexcept nogil
    # Before a table is saved.
    cdef void make_copy_room(self) noexcept nogil
    cdef void add_table(self, TableState* table) noexcept nogil
    cdef void remove_table(self, TableState* table) noexcept nogil
    # Messages per peer have to fit into so many bytes, on this rank and the others.
    cdef void narrow(self, size_t peer_bytes) noexcept nogil
    # Rows per message, of a table: with a budget the keys beside short rows count.
    cdef void set_message_bytes(self, TableState* table) noexcept nogil


# Of rows set apart that are to be written to a checkpoint, and can be: bytes.
cdef int64_t copies_waiting(Budget budget) noexcept nogil
# What a table takes before it has a row, and each of its slots.
cdef size_t slot_bytes(const TableState* table) noexcept nogil
cdef int64_t bytes_of(const TableState* table) noexcept nogil
