"""Send queue of the tcp transport; ``send_queue.pxd`` is the contract."""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from posix.uio cimport iovec

from intentpm.transports.base cimport HOST_MEMORY, MAX_HEADER_BYTES, Piece, done_fn
from intentpm.transports.framing cimport MAX_BODY_BYTES, note_coded, padded, write_frame_lead
from intentpm.transports.word_coding cimport MOST_CODED_BYTES, code_words, coded_room

cdef extern from *:
    """static const char FRAME_ZEROS[8] = {0};"""
    const char* FRAME_ZEROS


cdef bint item_start(
        SendItem* item, uint8_t message_id, int64_t due_ns, const char* header, size_t header_bytes,
        const Piece* pieces, size_t piece_count, done_fn done, void* argument) noexcept nogil:
    cdef size_t index, body_bytes = 0
    for index in range(piece_count):
        if pieces[index].memory != HOST_MEMORY or pieces[index].size_bytes > MAX_BODY_BYTES:
            return False
        body_bytes += pieces[index].size_bytes
    if header_bytes > MAX_HEADER_BYTES or body_bytes > MAX_BODY_BYTES:
        return False
    item.next = NULL
    item.done = done
    item.argument = argument
    item.pieces = pieces
    item.piece_count = piece_count
    item.coded = NULL
    item.due_ns = due_ns
    item.segment = 0
    item.offset_bytes = 0
    item.lead_bytes = <uint32_t>write_frame_lead(item.lead, message_id, header, header_bytes, body_bytes)
    item.tail_bytes = <uint32_t>(padded(body_bytes) - body_bytes)
    item.frame_bytes = item.unsent_bytes = item.lead_bytes + padded(body_bytes)
    return True


cdef bint item_code(SendItem* item) noexcept nogil:
    cdef size_t raw_bytes, coded_bytes
    if item.piece_count != 1 or item.pieces[0].size_bytes > MOST_CODED_BYTES:
        return False
    raw_bytes = item.pieces[0].size_bytes
    item.coded = <char*>malloc(coded_room(raw_bytes))
    if item.coded == NULL:
        return False                         # it goes as it is
    coded_bytes = code_words(item.pieces[0].data, raw_bytes, item.coded)
    if coded_bytes == 0:
        item_clear(item)
        return False
    note_coded(item.lead, coded_bytes)
    item.few_pieces[0].data = item.coded
    item.few_pieces[0].size_bytes = coded_bytes
    item.few_pieces[0].memory = HOST_MEMORY
    item.pieces = item.few_pieces
    item.tail_bytes = <uint32_t>(padded(coded_bytes) - coded_bytes)
    item.frame_bytes = item.unsent_bytes = item.lead_bytes + padded(coded_bytes)
    return True


cdef void item_clear(SendItem* item) noexcept nogil:
    free(item.coded)
    item.coded = NULL


cdef inline const char* _segment(const SendItem* item, size_t index, size_t* size_bytes) noexcept nogil:
    if index == 0:
        size_bytes[0] = item.lead_bytes
        return item.lead
    if index <= item.piece_count:
        size_bytes[0] = item.pieces[index - 1].size_bytes
        return item.pieces[index - 1].data
    size_bytes[0] = item.tail_bytes
    return FRAME_ZEROS


cdef size_t item_gather(const SendItem* item, iovec* out, size_t room) noexcept nogil:
    cdef size_t segment = item.segment, offset = item.offset_bytes, count = 0, size_bytes = 0
    cdef const char* data
    while segment <= item.piece_count + 1 and count < room:
        data = _segment(item, segment, &size_bytes)
        if size_bytes > offset:
            out[count].iov_base = <void*>(data + offset)
            out[count].iov_len = size_bytes - offset
            count += 1
        offset = 0
        segment += 1
    return count


cdef void item_advance(SendItem* item, size_t sent_bytes) noexcept nogil:
    cdef size_t size_bytes = 0
    item.unsent_bytes -= sent_bytes
    while sent_bytes > 0:
        _segment(item, item.segment, &size_bytes)
        if sent_bytes < size_bytes - item.offset_bytes:
            item.offset_bytes += sent_bytes
            return
        sent_bytes -= size_bytes - item.offset_bytes
        item.offset_bytes = 0
        item.segment += 1


cdef SendItem* _new_item(SpareItems* spare) noexcept nogil:
    cdef SendItem* item = spare.first
    if item == NULL:
        return <SendItem*>malloc(sizeof(SendItem))
    spare.first = item.next
    spare.count -= 1
    return item


cdef void _free_item(SendItem* item, SpareItems* spare) noexcept nogil:
    if item.pieces != item.few_pieces:
        free(<void*>item.pieces)
    item_clear(item)
    if spare.count >= MAX_SPARE_ITEMS:
        free(item)
        return
    item.next = spare.first
    spare.first = item
    spare.count += 1


cdef bint queue_keep(SendQueue* queue, const SendItem* item, int64_t now_ns, SpareItems* spare) noexcept nogil:
    cdef SendItem* kept = _new_item(spare)
    if kept == NULL:
        return False
    memcpy(kept, item, sizeof(SendItem) - FRAME_LEAD_BYTES + item.lead_bytes)
    kept.pieces = kept.few_pieces
    if item.piece_count > FEW_PIECES:
        kept.pieces = <Piece*>malloc(item.piece_count * sizeof(Piece))
        if kept.pieces == NULL:
            free(kept)
            return False
    memcpy(<void*>kept.pieces, item.pieces, item.piece_count * sizeof(Piece))
    _insert(queue, kept, now_ns)
    queue.unsent_bytes += kept.unsent_bytes
    return True


cdef void _insert(SendQueue* queue, SendItem* item, int64_t now_ns) noexcept nogil:
    cdef SendItem* before = queue.last_urgent
    cdef SendItem* after
    if before == NULL and queue.head != NULL and queue.head.unsent_bytes < queue.head.frame_bytes:
        before = queue.head                  # a part of it is on its way
    after = queue.head if before == NULL else before.next
    while after != NULL and after.due_ns <= (item.due_ns if item.due_ns else now_ns):
        before = after
        after = after.next
    if item.due_ns == 0:
        queue.last_urgent = item
    item.next = after
    if before == NULL:
        queue.head = item
    else:
        before.next = item


cdef size_t queue_gather(const SendQueue* queue, iovec* out, size_t room) noexcept nogil:
    cdef const SendItem* item = queue.head
    cdef size_t count = 0
    while item != NULL and count < room:
        count += item_gather(item, out + count, room - count)
        item = item.next
    return count


cdef SendItem* _pop(SendQueue* queue) noexcept nogil:
    cdef SendItem* item = queue.head
    queue.head = item.next
    if queue.last_urgent == item:
        queue.last_urgent = NULL
    queue.unsent_bytes -= item.unsent_bytes
    return item


cdef int queue_advance(SendQueue* queue, size_t sent_bytes, SpareItems* spare) noexcept nogil:
    cdef int finished = 0
    cdef size_t part
    cdef SendItem* item
    cdef SendItem* gone = NULL
    cdef SendItem** end = &gone
    while sent_bytes > 0:
        part = min(sent_bytes, queue.head.unsent_bytes)
        item_advance(queue.head, part)
        queue.unsent_bytes -= part
        sent_bytes -= part
        if queue.head.unsent_bytes == 0:
            end[0] = _pop(queue)
            end[0].next = NULL
            end = &end[0].next
    # All off the queue before any ``done``: it may call send(), whose message may go before those that are left.
    while gone != NULL:
        item = gone
        gone = item.next
        if item.done != NULL:
            item.done(item.argument, 0)
        _free_item(item, spare)
        finished += 1
    return finished


cdef int queue_fail(SendQueue* queue, int status, bint silent, SpareItems* spare) noexcept nogil:
    cdef int failed = 0
    cdef SendItem* item
    while queue.head != NULL:
        item = _pop(queue)
        if item.done != NULL and not silent:
            item.done(item.argument, status)
        _free_item(item, spare)
        failed += 1
    return failed


cdef void spare_clear(SpareItems* spare) noexcept nogil:
    cdef SendItem* item
    while spare.first != NULL:
        item = spare.first
        spare.first = item.next
        free(item)
    spare.count = 0
