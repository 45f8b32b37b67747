"""What becomes of a holder's keys when the ranks that are left form anew (membership.pxd).

Called by: Reforming, in this order. Assumption: the engine's lock is held, and no message is under way.
"""

from libc.stdint cimport uint32_t

from intentpm.runtime._native.holder cimport Holder
from intentpm.runtime._native.state cimport KeyRefs
from intentpm.runtime._native.table_state cimport TableState


# What was asked for is forgotten, and records that were not answered have not been taken: those of replicas are put into
# ``untaken``. The owner is asked for every replica's row once more.
cdef void restart_holder(Holder holder, KeyRefs& untaken) noexcept nogil
# Keys whose owner was lost: the replica here becomes the main copy, of a version later than ``version``; or is forgotten.
cdef void become_owner(Holder holder, TableState* table, uint32_t key, uint32_t version) noexcept nogil
cdef void forget_replica(Holder holder, TableState* table, uint32_t key) noexcept nogil
# They have formed: asks again for what is intended, and tells owners what they have not heard.
cdef void resume_holder(Holder holder) noexcept nogil
