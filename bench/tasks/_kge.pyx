"""Compute kernels of knowledge graph embeddings: what a batch of triples asks for, and the way back of its gradients.

Every model scores a triple by its *tail query*, made of head and relation, against the tail, and equally by its *head
query*, made of relation and tail, against the head. So all candidates of a batch are scored by one matrix product (RotatE:
one matrix of distances), and the kernels here do what is left: queries, their gradients, AdaGrad.

An entity's embedding is D numbers; ComplEx and RotatE take them for D/2 complex ones, first the real parts, then the
imaginary ones. A relation's is of the length L that ``relation_length`` gives: D for ComplEx and DistMult, D/2 angles for
RotatE, a D x D matrix for RESCAL. A row is an embedding and, as long again, its AdaGrad sums.
Shape letters: T triples, Q = 2 T queries (those of the tails first), J candidates, E and R rows, D, L.
"""

from libc.math cimport cosf, sinf, sqrtf
from libc.stdint cimport int32_t
from libcpp.vector cimport vector

from intentpm.bench.tasks._vectors cimport add_scaled, check_indices, dot

MODELS = ("complex", "distmult", "rotate", "rescal")

cdef enum Model:
    COMPLEX = 0
    DISTMULT = 1
    ROTATE = 2
    RESCAL = 3

cdef float EPSILON = 1e-10       # of AdaGrad: keeps 0 / 0 out of columns that never had a gradient
cdef float NEAR = 1e-12          # added to the square of a distance, which has no derivative at 0


def relation_length(str model, Py_ssize_t dim):
    """How many numbers embed a relation, where ``dim`` embed an entity."""
    return {"complex": dim, "distmult": dim, "rotate": dim // 2, "rescal": dim * dim}[model]


# -- one triple --------------------------------------------------------------------------------------------------------
# Products of complex vectors. ``sign`` -1 conjugates the left one.

cdef inline void multiply(
        float* product, const float* left, float sign, const float* right, Py_ssize_t dim) noexcept nogil:
    cdef Py_ssize_t half = dim // 2, i
    for i in range(half):
        product[i] = left[i] * right[i] - sign * left[half + i] * right[half + i]
        product[half + i] = left[i] * right[half + i] + sign * left[half + i] * right[i]


cdef inline void add_product(
        float* to, const float* left, float sign, const float* right, Py_ssize_t dim) noexcept nogil:
    cdef Py_ssize_t half = dim // 2, i
    for i in range(half):
        to[i] += left[i] * right[i] - sign * left[half + i] * right[half + i]
        to[half + i] += left[i] * right[half + i] + sign * left[half + i] * right[i]


cdef inline void turn_of(float* turn, const float* angles, Py_ssize_t dim) noexcept nogil:
    """The complex numbers of length 1 with these angles."""
    cdef Py_ssize_t half = dim // 2, i
    for i in range(half):
        turn[i] = cosf(angles[i])
        turn[half + i] = sinf(angles[i])


cdef inline void add_turned(
        float* angle_gradient, float sign, const float* query, const float* gradient, Py_ssize_t dim) noexcept nogil:
    """Of a query that was turned by ``sign`` times the angles."""
    cdef Py_ssize_t half = dim // 2, i
    for i in range(half):
        angle_gradient[i] += sign * (query[i] * gradient[half + i] - query[half + i] * gradient[i])


cdef void make_queries(
        Model model, const float* head, const float* relation, const float* tail, float* tails, float* heads, float* turn,
        Py_ssize_t dim) noexcept nogil:
    cdef Py_ssize_t i
    if model == COMPLEX:
        multiply(tails, head, 1, relation, dim)
        multiply(heads, relation, -1, tail, dim)
    elif model == DISTMULT:
        for i in range(dim):
            tails[i] = head[i] * relation[i]
            heads[i] = relation[i] * tail[i]
    elif model == ROTATE:
        turn_of(turn, relation, dim)
        multiply(tails, turn, 1, head, dim)
        multiply(heads, turn, -1, tail, dim)
    else:
        for i in range(dim):
            tails[i] = 0
        for i in range(dim):
            add_scaled(tails, head[i], relation + i * dim, dim)
            heads[i] = dot(relation + i * dim, tail, dim)


cdef void add_gradients(
        Model model, const float* head, const float* relation, const float* tail, const float* tails, const float* heads,
        const float* of_tails, const float* of_heads, float* head_gradient, float* relation_gradient, float* tail_gradient,
        float* turn, Py_ssize_t dim) noexcept nogil:
    """Adds what the gradients by both queries are by head, relation and tail."""
    cdef Py_ssize_t i
    if model == COMPLEX:
        add_product(head_gradient, relation, -1, of_tails, dim)
        add_product(relation_gradient, head, -1, of_tails, dim)
        add_product(relation_gradient, of_heads, -1, tail, dim)
        add_product(tail_gradient, relation, 1, of_heads, dim)
    elif model == DISTMULT:
        for i in range(dim):
            head_gradient[i] += relation[i] * of_tails[i]
            relation_gradient[i] += head[i] * of_tails[i] + tail[i] * of_heads[i]
            tail_gradient[i] += relation[i] * of_heads[i]
    elif model == ROTATE:
        turn_of(turn, relation, dim)
        add_product(head_gradient, turn, -1, of_tails, dim)
        add_product(tail_gradient, turn, 1, of_heads, dim)
        add_turned(relation_gradient, 1, tails, of_tails, dim)
        add_turned(relation_gradient, -1, heads, of_heads, dim)
    else:
        for i in range(dim):
            head_gradient[i] += dot(relation + i * dim, of_tails, dim)
            add_scaled(tail_gradient, of_heads[i], relation + i * dim, dim)
            add_scaled(relation_gradient + i * dim, head[i], of_tails, dim)
            add_scaled(relation_gradient + i * dim, of_heads[i], tail, dim)


cdef inline void add_cubes(
        float* gradient, float weight, const float* values, Py_ssize_t dim, bint as_complex) noexcept nogil:
    """Gradient of ``weight / 3`` times the cubed lengths of the (complex) numbers."""
    cdef Py_ssize_t half = dim // 2, i
    cdef float length
    if as_complex:
        for i in range(half):
            length = weight * sqrtf(values[i] * values[i] + values[half + i] * values[half + i])
            gradient[i] += length * values[i]
            gradient[half + i] += length * values[half + i]
    else:
        for i in range(dim):
            gradient[i] += weight * (values[i] if values[i] > 0 else -values[i]) * values[i]


# -- a batch -----------------------------------------------------------------------------------------------------------

cdef object _check(
        str model, const float[:, ::1] entity_rows, const float[:, ::1] relation_rows, const int32_t[:, ::1] triples):
    cdef Py_ssize_t width = entity_rows.shape[1], n
    cdef bint entities_fit = True, relations_fit = True
    if model not in MODELS:
        raise ValueError(f"model={model!r}: choose one of {', '.join(MODELS)}")
    if width % 4 or width == 0 or relation_rows.shape[1] != 2 * relation_length(model, width // 2):
        raise ValueError(f"entity rows have {width} columns and relation rows {relation_rows.shape[1]}: do not fit {model}")
    if triples.shape[1] != 3:
        raise ValueError("triples need the shape (T, 3)")
    for n in range(triples.shape[0]):
        entities_fit = (entities_fit and 0 <= triples[n, 0] < entity_rows.shape[0]
                        and 0 <= triples[n, 2] < entity_rows.shape[0])
        relations_fit = relations_fit and 0 <= triples[n, 1] < relation_rows.shape[0]
    if not entities_fit:
        raise IndexError(f"triples has an entity outside 0 to {entity_rows.shape[0] - 1}")
    if not relations_fit:
        raise IndexError(f"triples has a relation outside 0 to {relation_rows.shape[0] - 1}")


def queries(
        str model, const float[:, ::1] entity_rows, const float[:, ::1] relation_rows, const int32_t[:, ::1] triples,
        float[:, ::1] out):
    """Writes the triples' tail queries, then their head queries, to ``out``.

    Parameters:
        entity_rows, relation_rows: float32 (E, 2 D) and (R, 2 L).
        triples: int32 (T, 3): the rows of head, relation and tail.
        out: float32 (2 T, D).
    Raises ValueError, IndexError: shapes that do not fit, an index out of range; nothing was written.
    Threads: any; releases the GIL.
    """
    _check(model, entity_rows, relation_rows, triples)
    cdef Py_ssize_t dim = entity_rows.shape[1] // 2, count = triples.shape[0], n
    if out.shape[0] != 2 * count or out.shape[1] != dim:
        raise ValueError("out needs the shape (2 T, D)")
    cdef Model kind = <Model><int>MODELS.index(model)
    cdef vector[float] turn
    turn.resize(dim)
    with nogil:
        for n in range(count):
            make_queries(kind, &entity_rows[triples[n, 0], 0], &relation_rows[triples[n, 1], 0],
                         &entity_rows[triples[n, 2], 0], &out[n, 0], &out[count + n, 0], turn.data(), dim)


def add_query_gradients(
        str model, const float[:, ::1] entity_rows, const float[:, ::1] relation_rows, const int32_t[:, ::1] triples,
        const float[:, ::1] made, const float[:, ::1] gradients, float regularisation,
        float[:, ::1] entity_gradients, float[:, ::1] relation_gradients):
    """Adds the gradients by the triples' embeddings to those of the rows.

    Parameters:
        model, entity_rows, relation_rows, triples: as of ``queries``.
        made, gradients: float32 (2 T, D): the queries, and the gradients by them.
        regularisation: its third times the cubed length of every (complex) number of a triple is part of the loss; the
            angles of RotatE are not.
        entity_gradients, relation_gradients: float32 (E, D) and (R, L).
    Raises and threads: as ``queries``.
    """
    _check(model, entity_rows, relation_rows, triples)
    cdef Py_ssize_t dim = entity_rows.shape[1] // 2, length = relation_rows.shape[1] // 2, count = triples.shape[0], n
    if (made.shape[0] != 2 * count or made.shape[1] != dim or gradients.shape[0] != 2 * count
            or gradients.shape[1] != dim):
        raise ValueError("queries and gradients need the shape (2 T, D)")
    if (entity_gradients.shape[0] != entity_rows.shape[0] or entity_gradients.shape[1] != dim
            or relation_gradients.shape[0] != relation_rows.shape[0] or relation_gradients.shape[1] != length):
        raise ValueError("entity_gradients and relation_gradients need the shapes (E, D) and (R, L)")
    cdef Model kind = <Model><int>MODELS.index(model)
    cdef bint as_complex = kind == COMPLEX or kind == ROTATE
    cdef const float* head
    cdef const float* relation
    cdef const float* tail
    cdef vector[float] turn
    turn.resize(dim)
    with nogil:
        for n in range(count):
            head, relation = &entity_rows[triples[n, 0], 0], &relation_rows[triples[n, 1], 0]
            tail = &entity_rows[triples[n, 2], 0]
            add_gradients(kind, head, relation, tail, &made[n, 0], &made[count + n, 0], &gradients[n, 0],
                          &gradients[count + n, 0], &entity_gradients[triples[n, 0], 0],
                          &relation_gradients[triples[n, 1], 0], &entity_gradients[triples[n, 2], 0], turn.data(), dim)
            add_cubes(&entity_gradients[triples[n, 0], 0], regularisation, head, dim, as_complex)
            add_cubes(&entity_gradients[triples[n, 2], 0], regularisation, tail, dim, as_complex)
            if kind != ROTATE:
                add_cubes(&relation_gradients[triples[n, 1], 0], regularisation, relation, length, as_complex)


def add_rows(float[:, ::1] to, const int32_t[::1] places, const float[:, ::1] rows):
    """``to[places[k]] += rows[k]`` for each k, in order; float32 (E, D), int32 (K,), float32 (K, D).

    Raises and threads: as ``queries``.
    """
    cdef Py_ssize_t count = places.shape[0], k
    if rows.shape[0] != count or rows.shape[1] != to.shape[1]:
        raise ValueError("rows need one for each place, of the same length")
    if count == 0:
        return
    check_indices(&places[0], count, to.shape[0], "places")
    with nogil:
        for k in range(count):
            add_scaled(&to[places[k], 0], 1, &rows[k, 0], to.shape[1])


def adagrad(const float[:, ::1] rows, const float[:, ::1] gradients, float learning_rate, float[:, ::1] deltas):
    """One AdaGrad step: writes (row after - row before) to ``deltas``.

    Parameters:
        rows, deltas: float32 (K, 2 L), each [L numbers | L sums of squared gradients].
        gradients: float32 (K, L).
    Raises and threads: as ``queries``.
    """
    cdef Py_ssize_t length = gradients.shape[1], k, i
    if (rows.shape[1] != 2 * length or rows.shape[0] != gradients.shape[0] or deltas.shape[0] != rows.shape[0]
            or deltas.shape[1] != rows.shape[1]):
        raise ValueError("rows and deltas need the shape (K, 2 L), gradients (K, L)")
    cdef const float* row
    cdef const float* gradient
    cdef float* delta
    cdef float square
    with nogil:
        for k in range(rows.shape[0]):
            row, gradient, delta = &rows[k, 0], &gradients[k, 0], &deltas[k, 0]
            for i in range(length):
                square = gradient[i] * gradient[i]
                delta[length + i] = square
                delta[i] = -learning_rate * gradient[i] / sqrtf(row[length + i] + square + EPSILON)


# -- distances of RotatE -----------------------------------------------------------------------------------------------

cdef inline float distance(const float* left, const float* right, Py_ssize_t dim) noexcept nogil:
    cdef Py_ssize_t half = dim // 2, i
    cdef float total = 0, real, imaginary
    for i in range(half):
        real, imaginary = left[i] - right[i], left[half + i] - right[half + i]
        total += sqrtf(real * real + imaginary * imaginary + NEAR)
    return total


cdef inline void add_direction(
        float* by_left, float* by_right, float slope, const float* left, const float* right, Py_ssize_t dim) noexcept nogil:
    cdef Py_ssize_t half = dim // 2, i
    cdef float real, imaginary, factor
    for i in range(half):
        real, imaginary = left[i] - right[i], left[half + i] - right[half + i]
        factor = slope / sqrtf(real * real + imaginary * imaginary + NEAR)
        by_left[i] += factor * real
        by_left[half + i] += factor * imaginary
        by_right[i] -= factor * real
        by_right[half + i] -= factor * imaginary


def distances(const float[:, ::1] left, const float[:, ::1] right, float[:, ::1] out):
    """Writes the distance of each left vector to each right one: sums of the lengths of complex differences.

    Parameters: float32 (Q, D), (J, D) and (Q, J). Raises and threads: as ``queries``.
    """
    cdef Py_ssize_t dim = left.shape[1], q, j
    if right.shape[1] != dim or dim % 2 or out.shape[0] != left.shape[0] or out.shape[1] != right.shape[0]:
        raise ValueError("need the shapes (Q, D), (J, D) and (Q, J), D even")
    with nogil:
        for q in range(left.shape[0]):
            for j in range(right.shape[0]):
                out[q, j] = distance(&left[q, 0], &right[j, 0], dim)


def add_distance_gradients(
        const float[:, ::1] left, const float[:, ::1] right, const float[:, ::1] slopes, float[:, ::1] by_left,
        float[:, ::1] by_right):
    """Adds the gradients of ``(slopes * distances).sum()``.

    Parameters: float32 (Q, D), (J, D), (Q, J), and as the first two. Raises and threads: as ``queries``.
    """
    cdef Py_ssize_t dim = left.shape[1], q, j
    if (right.shape[1] != dim or dim % 2 or slopes.shape[0] != left.shape[0] or slopes.shape[1] != right.shape[0]
            or by_left.shape[0] != left.shape[0] or by_left.shape[1] != dim
            or by_right.shape[0] != right.shape[0] or by_right.shape[1] != dim):
        raise ValueError("need the shapes (Q, D), (J, D), (Q, J), (Q, D) and (J, D), D even")
    with nogil:
        for q in range(left.shape[0]):
            for j in range(right.shape[0]):
                add_direction(&by_left[q, 0], &by_right[j, 0], slopes[q, j], &left[q, 0], &right[j, 0], dim)
