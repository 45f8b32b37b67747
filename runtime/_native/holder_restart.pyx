"""A holder's keys when ranks form anew; ``holder_restart.pxd`` is the contract."""

from libc.stdint cimport uint8_t, uint32_t
from libcpp.vector cimport vector

from intentpm.runtime._native.flags cimport (
    KEY_COLOUR, KEY_FRESH, KEY_IN_FLIGHT, KEY_MISSED, KEY_OFFERED, KEY_ONCE, KEY_QUEUED,
)
from intentpm.runtime._native.holder cimport Holder
from intentpm.runtime._native.replicas cimport promote_in_place, take_pending
from intentpm.runtime._native.slots cimport change_state, drop_replica
from intentpm.runtime._native.state cimport STATE_ABSENT, STATE_REPLICA, STATE_REQUESTED, KeyRef, KeyRefs
from intentpm.runtime._native.table_state cimport TableState, key_state


cdef void restart_holder(Holder holder, KeyRefs& untaken) noexcept nogil:
    cdef uint32_t peer, t
    holder.fenced.clear()
    holder.draining.clear()
    holder.cutting = False
    holder.records_in_flight = holder.busy[0] = holder.busy[1] = 0
    for peer in range(<uint32_t>holder.todo.size()):
        holder.todo[peer].clear()
        holder.open_records[peer] = holder.open_records[holder._releases_to(peer)] = 0
        holder.releasable[peer] = 0
        holder.asked_bytes[peer] = 0
        holder.growing[peer] = False
    for t in range(holder.remote.table_count):
        _restart_table(holder.remote.tables[t], untaken)


cdef void _restart_table(TableState* table, KeyRefs& untaken) noexcept nogil:
    cdef KeyRef reference
    cdef uint32_t key
    for key in range(<uint32_t>table.num_keys):
        if key_state(table, key) == STATE_REQUESTED:
            change_state(table, key, STATE_ABSENT)
            # Nothing is left of the question: restored here, the key is owned, and may be given away, and what is written to
            # a replica of it then must not wait for a use to end.
            table.flags[key] &= <uint8_t>~(KEY_ONCE | KEY_MISSED | KEY_OFFERED)
            table.slots_promised -= 1
        if key_state(table, key) == STATE_REPLICA:
            # Asked for anew: the owner's row may lack what a record brought, and news may have been lost with the rank that
            # sent them, though the key has another owner by now. Race: the rank that is lost hands the key over.
            #   1  lost   sends the last news of the key to its holder, then its row to the new owner, and ends
            #   2  owner  has the row, and the holder on its list, told of all
            #   3  holder hears of the loss before it has read the news: drops the connection that they lie in
            table.flags[key] |= KEY_MISSED
            if table.flags[key] & KEY_IN_FLIGHT:
                reference.table = table.table_id
                reference.key = key
                reference.tick = 0
                untaken.push_back(reference)
        table.flags[key] &= <uint8_t>~(KEY_QUEUED | KEY_IN_FLIGHT | KEY_COLOUR | KEY_FRESH)


cdef void become_owner(Holder holder, TableState* table, uint32_t key, uint32_t version) noexcept nogil:
    table.flags[key] &= <uint8_t>~(KEY_ONCE | KEY_MISSED | KEY_OFFERED)
    promote_in_place(table, key, version)
    holder.replicas_promoted += 1
    holder.replicas_taken -= 1


cdef void forget_replica(Holder holder, TableState* table, uint32_t key) noexcept nogil:
    cdef vector[char] scratch
    scratch.resize(2 * table.record_bytes + 1)
    while not drop_replica(table, key):      # workers may write to it still
        take_pending(table, key, scratch.data())
    table.flags[key] &= <uint8_t>~(KEY_ONCE | KEY_MISSED | KEY_OFFERED)
    holder.replicas_dropped += 1
    holder.replicas_taken -= 1


cdef void resume_holder(Holder holder) noexcept nogil:
    cdef TableState* table
    cdef uint32_t t, key
    for t in range(holder.remote.table_count):
        table = holder.remote.tables[t]
        for key in range(<uint32_t>table.num_keys):
            if key_state(table, key) == STATE_ABSENT and table.records[key].intent_refs > 0:
                holder.want(table, key, False, 0)
            elif holder._needs_record(table, key):
                holder.queue(table, key)
