"""Compute kernel of knowledge graph embeddings: ComplEx with negative sampling and AdaGrad over one batch of triples.

A row holds an embedding and its AdaGrad sums: [D real and imaginary parts | D sums of squared gradients]; an
embedding is D/2 complex numbers, first the real parts, then the imaginary ones. The score of a triple is Re(<head,
relation, conj(tail)>). It is the real product of the tail with the *tail query* head * relation, and of the head with
the *head query* conj(relation) * tail: so a negative costs two products and one AdaGrad step.
Shape letters: T triples of the batch, J negatives per side and triple, E and R different entity and relation rows, D.
"""

from libc.math cimport exp, log, log1p, sqrtf
from libc.stdint cimport int32_t
from libc.string cimport memcpy
from libcpp.vector cimport vector

from intentpm.bench.tasks._vectors cimport add_scaled, check_indices, dot, subtract

LOSSES = ("softmax", "logistic")

cdef enum Loss:
    SOFTMAX = 0
    LOGISTIC = 1

cdef float EPSILON = 1e-10       # of AdaGrad: keeps 0 / 0 out of columns that never had a gradient

cdef struct Step:
    Py_ssize_t dim
    float learning_rate
    float l2
    Loss loss


cdef inline void multiply(float* product, const float* left, const float* right, Py_ssize_t dim) noexcept nogil:
    cdef Py_ssize_t half = dim // 2, i
    for i in range(half):
        product[i] = left[i] * right[i] - left[half + i] * right[half + i]
        product[half + i] = left[i] * right[half + i] + left[half + i] * right[i]


cdef inline void multiply_conjugate(
        float* product, const float* conjugated, const float* right, Py_ssize_t dim) noexcept nogil:
    cdef Py_ssize_t half = dim // 2, i
    for i in range(half):
        product[i] = conjugated[i] * right[i] + conjugated[half + i] * right[half + i]
        product[half + i] = conjugated[i] * right[half + i] - conjugated[half + i] * right[i]


cdef inline void descend(float* row, float scale, const float* gradient, const Step* step) noexcept nogil:
    """AdaGrad with ``scale * gradient``."""
    cdef float* sums = row + step.dim
    cdef float value
    cdef Py_ssize_t i
    for i in range(step.dim):
        value = scale * gradient[i]
        sums[i] += value * value
        row[i] -= step.learning_rate * value / sqrtf(sums[i] + EPSILON)


cdef inline double softplus(double x) noexcept nogil:
    return x + log1p(exp(-x)) if x > 0 else log1p(exp(x))


cdef double slopes(float* scores, float positive, Py_ssize_t count, Loss loss, float* positive_slope) noexcept nogil:
    """Replaces the scores of one side's negatives by the derivatives of the loss by them; returns the loss.

    softmax: cross-entropy of the positive among itself and the negatives. logistic: each score against its label; the
    positive counts half, as both sides have it.
    """
    cdef double total = 0, largest = positive
    cdef Py_ssize_t j
    if loss == LOGISTIC:
        for j in range(count):
            total += softplus(scores[j])
            scores[j] = <float>(1 / (1 + exp(-<double>scores[j])))
        positive_slope[0] = <float>(-0.5 / (1 + exp(<double>positive)))
        return total + 0.5 * softplus(-positive)
    for j in range(count):
        largest = max(largest, <double>scores[j])
    total = exp(positive - largest)
    for j in range(count):
        total += exp(scores[j] - largest)
    for j in range(count):
        scores[j] = <float>(exp(scores[j] - largest) / total)
    positive_slope[0] = <float>(exp(positive - largest) / total - 1)
    return log(total) - (positive - largest)


cdef struct Side:
    # One side of a triple: what is replaced is its target, what the rest asks for its query.
    float* query
    float* query_gradient
    float* scores                # then slopes, of the negatives
    float positive_slope


cdef double look_at_side(
        Side* side, const float* target, float* entities, const int32_t* negatives, Py_ssize_t count,
        const Step* step) noexcept nogil:
    """Scores one side's negatives and finds all derivatives that belong to it. Changes no row. Returns its loss."""
    cdef Py_ssize_t width = 2 * step.dim, j
    cdef double loss
    for j in range(count):
        side.scores[j] = dot(side.query, entities + negatives[j] * width, step.dim)
    loss = slopes(side.scores, dot(side.query, target, step.dim), count, step.loss, &side.positive_slope)
    for j in range(step.dim):
        side.query_gradient[j] = side.positive_slope * target[j]
    for j in range(count):
        add_scaled(side.query_gradient, side.scores[j], entities + negatives[j] * width, step.dim)
    return loss


cdef double train_triple(
        float* entities, float* relations, int32_t head_index, int32_t relation_index, int32_t tail_index,
        const int32_t* negatives, Py_ssize_t count, float* scratch, const Step* step) noexcept nogil:
    # All derivatives are taken before the first row moves: the same entity may be here several times.
    cdef Py_ssize_t dim = step.dim, width = 2 * step.dim, j
    cdef float* head = entities + head_index * width
    cdef float* relation = relations + relation_index * width
    cdef float* tail = entities + tail_index * width
    cdef float* head_gradient = scratch + 4 * dim
    cdef float* relation_gradient = scratch + 5 * dim
    cdef float* tail_gradient = scratch + 6 * dim
    cdef float* product = scratch + 7 * dim
    cdef Side tails, heads
    cdef double loss
    tails.query, tails.query_gradient, tails.scores = scratch, scratch + dim, scratch + 8 * dim
    heads.query, heads.query_gradient, heads.scores = scratch + 2 * dim, scratch + 3 * dim, scratch + 8 * dim + count

    multiply(tails.query, head, relation, dim)
    multiply_conjugate(heads.query, relation, tail, dim)
    loss = look_at_side(&tails, tail, entities, negatives, count, step)
    loss += look_at_side(&heads, head, entities, negatives + count, count, step)

    multiply_conjugate(head_gradient, relation, tails.query_gradient, dim)
    multiply_conjugate(relation_gradient, head, tails.query_gradient, dim)
    multiply_conjugate(product, heads.query_gradient, tail, dim)
    multiply(tail_gradient, relation, heads.query_gradient, dim)
    for j in range(dim):
        head_gradient[j] += heads.positive_slope * heads.query[j] + step.l2 * head[j]
        relation_gradient[j] += product[j] + step.l2 * relation[j]
        tail_gradient[j] += tails.positive_slope * tails.query[j] + step.l2 * tail[j]

    descend(head, 1, head_gradient, step)
    descend(relation, 1, relation_gradient, step)
    descend(tail, 1, tail_gradient, step)
    for j in range(count):
        descend(entities + negatives[j] * width, tails.scores[j], tails.query, step)
        descend(entities + negatives[count + j] * width, heads.scores[j], heads.query, step)
    return loss


def train_batch(
        const float[:, ::1] entity_rows, const float[:, ::1] relation_rows, const int32_t[:, ::1] triples,
        const int32_t[:, :, ::1] negatives, float[:, ::1] entity_deltas, float[:, ::1] relation_deltas,
        float learning_rate, float l2, str loss):
    """Trains on the triples one after the other and returns what to add to the rows.

    Each triple sees the updates of those before it. Its loss is that of its ``J`` negative tails plus that of its ``J``
    negative heads, plus ``l2 / 2`` times the squares of its own three embeddings.

    Parameters:
        entity_rows, relation_rows: float32 (E, 2 D) and (R, 2 D), D even, the values pulled; not changed.
        triples: int32 (T, 3): the rows of head, relation and tail.
        negatives: int32 (T, 2, J): the entity rows that replace the tail, then those that replace the head.
        entity_deltas, relation_deltas: float32, shaped as the rows, overwritten with (value after - value before).
        loss: "softmax": cross-entropy of the true entity among itself and the negatives of a side. "logistic": each
            score against its label, the triple's own counted once.
    Returns:
        The sum of the losses without the squares, each taken before its triple's own update (float64).
    Raises:
        ValueError, IndexError: shapes that do not fit, an index out of range; nothing was written.
    Threads: any; releases the GIL.
    """
    cdef Py_ssize_t width = entity_rows.shape[1], count = triples.shape[0], per_side = negatives.shape[2], n
    if width != relation_rows.shape[1] or width % 4 or width == 0:
        raise ValueError(f"entity rows have {width} columns and relation rows {relation_rows.shape[1]}: "
                         "need the same number, a multiple of 4")
    if triples.shape[1] != 3 or negatives.shape[0] != count or negatives.shape[1] != 2:
        raise ValueError("triples and negatives need the shapes (T, 3) and (T, 2, J)")
    if (entity_deltas.shape[0] != entity_rows.shape[0] or entity_deltas.shape[1] != width
            or relation_deltas.shape[0] != relation_rows.shape[0] or relation_deltas.shape[1] != width):
        raise ValueError("entity_deltas and relation_deltas need the shapes of the rows")
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r}: choose one of {', '.join(LOSSES)}")
    if count == 0:
        entity_deltas[:, :] = 0
        relation_deltas[:, :] = 0
        return 0.0
    _check_triples(triples, entity_rows.shape[0], relation_rows.shape[0])
    if per_side:
        check_indices(&negatives[0, 0, 0], 2 * count * per_side, entity_rows.shape[0], "negatives")
    cdef Step step = Step(width // 2, learning_rate, l2, <Loss><int>LOSSES.index(loss))
    cdef vector[float] scratch
    scratch.resize(8 * step.dim + 2 * per_side)
    cdef float* entities = &entity_deltas[0, 0]
    cdef float* relations = &relation_deltas[0, 0]
    cdef const int32_t* candidates = &negatives[0, 0, 0] if per_side else NULL
    cdef double total = 0
    with nogil:
        memcpy(entities, &entity_rows[0, 0], entity_rows.shape[0] * width * sizeof(float))
        memcpy(relations, &relation_rows[0, 0], relation_rows.shape[0] * width * sizeof(float))
        for n in range(count):
            total += train_triple(
                entities, relations, triples[n, 0], triples[n, 1], triples[n, 2], candidates + 2 * n * per_side,
                per_side, scratch.data(), &step)
        subtract(entities, &entity_rows[0, 0], entity_rows.shape[0] * width)
        subtract(relations, &relation_rows[0, 0], relation_rows.shape[0] * width)
    return total


cdef object _check_triples(const int32_t[:, ::1] triples, Py_ssize_t entities, Py_ssize_t relations):
    cdef Py_ssize_t n
    cdef bint entities_fit = True, relations_fit = True
    for n in range(triples.shape[0]):
        entities_fit = entities_fit and 0 <= triples[n, 0] < entities and 0 <= triples[n, 2] < entities
        relations_fit = relations_fit and 0 <= triples[n, 1] < relations
    if not entities_fit:
        raise IndexError(f"triples has an entity outside 0 to {entities - 1}")
    if not relations_fit:
        raise IndexError(f"triples has a relation outside 0 to {relations - 1}")
