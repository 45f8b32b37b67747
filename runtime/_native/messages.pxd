"""The messages between ranks: one fixed header each, then a body of aligned sections.

Headers are C structs in the byte order of the machine (the handshake refuses a peer with another one). A section of a body
starts at a multiple of 8 bytes. ``K`` is the header's ``count``.

    ACCESS    a pull, push, set or step. Body: keys u32 [K], index u32 [K] if INDEXED, epochs u32 [K] if FORWARDED (at which
              the sender believes the receiver became the owner), lr f64 [1] if step, rows [K, row_bytes] if it writes
    REPLY     answers some or all keys of an ACCESS. Body: rows [K, row_bytes] if pull (of a whole row: [K, stored_bytes]),
              index u32 [K] if INDEXED, keys u32 [K] and epochs u32 [K] if FORWARDED (so that the origin learns where they are)
    COLLECT   a rank's contribution to a collective call, to rank 0; the one with the highest ``flags`` counts. Body: payload
    RESULT    rank 0's answer to all: the contributions in rank order. Body: lengths u32 [N], payloads; if SAME one payload
    ROLL_CALL, ABSENT   which ranks have not come to this collective call? The answer's body: ranks u32
    PING, PONG   sign of life, asked for and given
    LEAVE     the sender closed its manager: it serves on until all ranks have left

    Management (rounds.pxd). R is the header's ``rows_bytes``; how long a row is follows from its record or result
    (message_rows.pxd). Sections in this order:
    ROUND     from a holder to an owner, one record per key. Body: rows u8 [R], keys u32 [K], epochs u32 [K] if FORWARDED,
              versions u32 [K], records u8 [K]; a record with ADD or SET has the next row, one with STEP the next after
              that. One that asks for a key (it is 0, or ONCE) has for its version in how many microseconds the key is first
              used
    ANSWER    to the holder. Body: rows u8 [R], keys u32 [K], epochs u32 [K], versions u32 [K], results u8 [K]; ROW, FETCHED,
              WEIGHTS and MOVED have the next row, with KEPT the next two. With HOLDERS also, for each MOVED, how many others
              hold the key, and their ranks: u16
    REFRESH   from an owner: newer rows of the receiver's replicas. Body as ANSWER
    REFRESHED the receiver has taken a REFRESH
    OFFER     from an owner: you alone still hold these; ask for them and they are yours. Body: keys u32 [K]
    MOVED     to keys' home: who owns them now. Body: keys u32 [K], epochs u32 [K], owners u32 [K]
    SYNC, SYNCED   (control header) send me all news of my replicas; done, they have arrived

    SIDE      an exchange beside the collective ones (side_exchange.pxd). Control header: its number in ``sequence``

    EXPLAIN, EXPLAINED   what do you know of this key; the answer's body: facts (inquiry.pxd). Control header: table and
              key in ``sequence``, the asker's request in ``culprit`` and ``flags``

    REFORM    ranks are lost, and the others form anew (membership.pxd). Control header: the step in ``sequence``. Body: which
              are lost u8 [N], and what the sender says in this step

    ABORT     a rank is lost (``culprit``; maybe the sender itself). Body: why, UTF-8
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef enum MessageId:
    MSG_ACCESS = 1
    MSG_REPLY = 2
    MSG_COLLECT = 3
    MSG_RESULT = 4
    MSG_PING = 5
    MSG_PONG = 6
    MSG_LEAVE = 7
    MSG_ABORT = 8
    MSG_SYNC = 9
    MSG_SYNCED = 10
    MSG_EXPLAIN = 11
    MSG_EXPLAINED = 12
    MSG_ROLL_CALL = 13
    MSG_ABSENT = 14
    MSG_SIDE = 15
    MSG_FIRST_ROUND = 16         # from here on the header is a RoundHeader
    MSG_ROUND = 16
    MSG_ANSWER = 17
    MSG_REFRESH = 18
    MSG_REFRESHED = 19
    MSG_OFFER = 20
    MSG_MOVED = 21
    MSG_REFORM = 22              # with a control header

cdef enum:
    MESSAGE_MASK = 31            # of an id as it is sent; above: the epoch of membership (membership.pxd)
    EPOCH_SHIFT = 5

cdef enum AccessKind:
    ACCESS_PULL = 0
    ACCESS_PUSH = 1
    ACCESS_SET = 2
    ACCESS_STEP = 3              # rows are gradients; of tables with an optimiser, as the next
    ACCESS_PULL_STORED = 4       # the whole row: weights and state
    ACCESS_SET_STORED = 5        # the same, overwritten: rows of a checkpoint
    ACCESS_KINDS = 6

cdef enum AccessFlags:
    FLAG_INDEXED = 1             # an index section says which keys of the origin's request these are
    FLAG_FORWARDED = 2           # came by way of a rank that no longer had the keys
    FLAG_SAME = 4                # RESULT: all contributions are equal, one is sent
    FLAG_HOLDERS = 8             # ANSWER: a section of holders follows
    FLAG_BEGINS = 16             # ROUND: the first message of its round
    CUT_SHIFT = 6                # ACCESS, ROUND: cuts that the origin had made, modulo 4 (cuts.pxd); ANSWER: of the snapshot
    CUT_MASK = 3 << 6

cdef struct AccessHeader:
    uint32_t request             # at the origin: index into its request pool ...
    uint32_t generation          # ... and how often that entry had been reused, so a late answer finds nobody
    uint32_t count
    uint16_t table
    uint16_t origin              # rank that answers go to
    uint8_t kind
    uint8_t flags
    uint16_t hops                # times forwarded so far

cdef enum RecordFlags:
    # What a holder says of a key. Without LEAVE it wants to hold the key (or go on to).
    RECORD_LEAVE = 1             # its intent is over: forget it as a holder
    RECORD_ADD = 2               # the row is to be added
    RECORD_SET = 4               # the row overwrites
    RECORD_HOLDS = 8             # the holder has the owner's row of this version, and whatever it wrote itself
    RECORD_STEP = 16             # the row is a kept one (optimiser_rows.hpp): steps to take
    RECORD_ONCE = 32             # for one use
    RECORD_GRADIENT = 64         # of a STEP: it is one step, and the row its gradient (row_optimiser.hpp)
    RECORD_WEIGHTS = 128         # the holder has the row's state, though maybe an older one: weights are enough for an answer
    RECORD_WRITTEN = 2 | 4 | 16  # what the holder wrote comes with it

cdef enum RecordResult:
    RESULT_ROW = 0               # you hold a replica; this is the owner's row
    RESULT_MOVED = 1             # you are the owner now
    RESULT_DROPPED = 2           # you are no longer a holder
    # You hold a replica; nobody else has written: your row is the owner's but for rounding, or but for a state that lags.
    RESULT_SAME = 3
    RESULT_MOVED_SAME = 4        # the same, and you are the owner now
    RESULT_WEIGHTS = 5           # you hold a replica; these are the owner's weights, the state stays as it is there
    RESULT_FETCHED = 6           # you hold a replica, for one use; these are the owner's weights, and the mean of its state
    RESULT_MASK = 63
    # With MOVED, of a table that is being saved (cuts.pxd):
    RESULT_KEPT = 64             # another row follows, which goes into the checkpoint
    RESULT_SAVED = 128           # the row is in the checkpoint, or stays behind for it

cdef struct RoundHeader:
    uint32_t count
    uint32_t rows_bytes
    uint16_t table
    uint16_t origin              # the holder
    uint16_t round_rank          # the rank whose round at the origin this record counts for; plus N: whose releases
    uint16_t hops
    uint8_t flags                # AccessFlags
    uint8_t window_slot          # of a REFRESH and its REFRESHED: which of the owner's open ones it is. ROUND: ``packed_clock``
    uint16_t load                # of a ROUND: of its origin, packed (policy.pxd)

cdef struct ControlHeader:
    uint64_t sequence            # of the collective; LEAVE: how many the sender has completed
    uint32_t culprit             # ABORT
    uint32_t flags               # RESULT: AccessFlags. COLLECT: how often the sender has amended it


cdef inline uint8_t packed_clock(int64_t clock_ns) noexcept nogil:
    """How long a worker's clock takes, us, as a byte: its upper 3 bits, and by how many places they were shifted."""
    cdef int64_t clock_us = min(clock_ns // 1000, <int64_t>0x7fffffff)
    cdef uint8_t places = 0
    while clock_us >> places > 7:
        places += 1
    return <uint8_t>(places << 3 | clock_us >> places)


cdef inline int64_t unpacked_clock(uint8_t packed) noexcept nogil:
    """ns, rounded up; 0: not known."""
    return 1000 * (<int64_t>((packed & 7) + 1) << (packed >> 3)) if packed else 0


cdef inline bint is_counted(uint8_t message_id) noexcept nogil:
    """Whether it is of an epoch of membership, and counted: not what a rank may send at any time."""
    return (
        message_id != MSG_PING and message_id != MSG_PONG and message_id != MSG_REFORM
        and message_id != MSG_ABORT)     # who gives up may be of another epoch; nobody waits for that message


cdef inline bint is_urgent(uint8_t message_id, const void* header) noexcept nogil:
    """Whether somebody waits for it; or it asks for rows and brings none, so that nothing comes the other way before it."""
    if message_id == MSG_ROUND:
        return (<const RoundHeader*>header).rows_bytes == 0
    return not (message_id == MSG_ANSWER or message_id == MSG_REFRESH or is_last(message_id))


cdef inline bint is_last(uint8_t message_id) noexcept nogil:
    """Whether all that was sent before should come before it."""
    return message_id == MSG_LEAVE or message_id == MSG_REFORM


cdef inline bint is_read(int access_kind) noexcept nogil:
    return access_kind == ACCESS_PULL or access_kind == ACCESS_PULL_STORED


cdef inline size_t carried_bytes(int access_kind, size_t row_bytes, size_t stored_bytes) noexcept nogil:
    """Per key, of the rows that an access carries."""
    return stored_bytes if access_kind == ACCESS_PULL_STORED or access_kind == ACCESS_SET_STORED else row_bytes


cdef inline bint has_row(uint8_t result) noexcept nogil:
    """A whole one."""
    return (result & RESULT_MASK) < RESULT_DROPPED


cdef inline bint is_weights(uint8_t result) noexcept nogil:
    return (result & RESULT_MASK) == RESULT_WEIGHTS


cdef inline bint is_fetched(uint8_t result) noexcept nogil:
    return (result & RESULT_MASK) == RESULT_FETCHED


cdef inline bint is_moved(uint8_t result) noexcept nogil:
    return (result & RESULT_MASK) == RESULT_MOVED


cdef inline size_t padded(size_t size_bytes) noexcept nogil:
    return (size_bytes + 7) & ~<size_t>7


cdef inline size_t indices_bytes(uint32_t count) noexcept nogil:
    """Of a u32 section."""
    return padded(<size_t>count * 4)


cdef inline bint keys_fit(const uint32_t* keys, uint32_t count, int64_t num_keys) noexcept nogil:
    """Whether there is a key, and all are of the table."""
    cdef uint32_t i
    for i in range(count):
        if keys[i] >= num_keys:
            return False
    return count > 0


# Where the sections of a body are; NULL: not there.
cdef struct AccessBody:
    uint32_t* keys
    uint32_t* index
    uint32_t* epochs
    double* lr
    char* rows
    size_t size_bytes


cdef inline AccessBody access_body(char* base, const AccessHeader* header, size_t row_bytes) noexcept nogil:
    """Layout of an ACCESS body that starts at ``base`` (may be NULL to learn the size)."""
    cdef AccessBody body
    cdef size_t at = indices_bytes(header.count)
    body.keys = <uint32_t*>base
    body.index = body.epochs = NULL
    body.lr = NULL
    body.rows = NULL
    if header.flags & FLAG_INDEXED:
        body.index = <uint32_t*>(base + at)
        at += indices_bytes(header.count)
    if header.flags & FLAG_FORWARDED:
        body.epochs = <uint32_t*>(base + at)
        at += indices_bytes(header.count)
    if header.kind == ACCESS_STEP:
        body.lr = <double*>(base + at)
        at += sizeof(double)
    if not is_read(header.kind):
        body.rows = base + at
        at += header.count * row_bytes
    body.size_bytes = at
    return body


cdef inline AccessBody reply_body(char* base, const AccessHeader* header, size_t row_bytes) noexcept nogil:
    """Layout of a REPLY body that starts at ``base``."""
    cdef AccessBody body
    cdef size_t at = 0
    body.keys = body.index = body.epochs = NULL
    body.lr = NULL
    body.rows = NULL
    if is_read(header.kind):
        body.rows = base
        at += padded(header.count * row_bytes)
    if header.flags & FLAG_INDEXED:
        body.index = <uint32_t*>(base + at)
        at += indices_bytes(header.count)
    if header.flags & FLAG_FORWARDED:
        body.keys = <uint32_t*>(base + at)
        at += indices_bytes(header.count)
        body.epochs = <uint32_t*>(base + at)
        at += indices_bytes(header.count)
    body.size_bytes = at
    return body


# Sections of ROUND, ANSWER and REFRESH bodies; NULL: not there.
cdef struct RoundBody:
    char* rows
    uint32_t* keys
    uint32_t* epochs
    uint32_t* versions
    uint8_t* codes               # records or results
    uint16_t* holders            # whether there is such a section or not: where it begins
    size_t size_bytes            # without it


cdef inline RoundBody round_body(
        char* base, const RoundHeader* header, bint epochs) noexcept nogil:
    """Layout of the body of a ROUND (epochs if forwarded), ANSWER or REFRESH (with epochs)."""
    cdef RoundBody body
    cdef size_t at = padded(header.rows_bytes)
    body.rows = base
    body.keys = <uint32_t*>(base + at)
    at += indices_bytes(header.count)
    body.epochs = NULL
    if epochs:
        body.epochs = <uint32_t*>(base + at)
        at += indices_bytes(header.count)
    body.versions = <uint32_t*>(base + at)
    at += indices_bytes(header.count)
    body.codes = <uint8_t*>(base + at)
    body.size_bytes = at + padded(header.count)
    body.holders = <uint16_t*>(base + body.size_bytes)
    return body


cdef inline size_t holders_bytes(size_t numbers) noexcept nogil:
    """Of a section of holders: for each MOVED a count, and so many ranks."""
    return padded(numbers * sizeof(uint16_t))


cdef inline bint holders_fit(
        const RoundBody* body, const RoundHeader* header, size_t body_bytes, uint32_t size) noexcept nogil:
    """Whether what follows the other sections is one of holders, where there should be one. size: ranks in the job."""
    cdef size_t room = (body_bytes - body.size_bytes) // sizeof(uint16_t) if body_bytes > body.size_bytes else 0
    cdef size_t at = 0, end = 0
    cdef uint32_t i
    if not header.flags & FLAG_HOLDERS:
        return body_bytes == body.size_bytes
    for i in range(header.count):
        if not is_moved(body.codes[i]):
            continue
        if at >= room or body.holders[at] >= size:
            return False
        end = at + 1 + body.holders[at]
        if end > room:
            return False
        for at in range(at + 1, end):
            if body.holders[at] >= size:
                return False
        at = end
    return body_bytes == body.size_bytes + holders_bytes(at)
