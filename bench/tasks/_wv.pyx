"""Compute kernel of word vectors: skip-gram with negative sampling, by SGD over one batch of windows.

A window is a centre word and the context words around it. Each context word's input vector is taught to tell the
centre's output vector from those of J negatives; the pairs of a window share their negatives. The loss of a pair is
``-log s(input . centre) - sum over negatives of log s(-input . negative)`` with the logistic function s.
Shape letters: T tokens of the batch, C centres, J negatives per centre, I and O different input and output rows, D.
"""

from libc.math cimport expf, log1pf
from libc.stdint cimport int32_t, uint8_t
from libc.string cimport memcpy, memset
from libcpp.vector cimport vector

from intentpm.bench.tasks._vectors cimport add_scaled, check_indices, dot, subtract


cdef inline float softplus(float x) noexcept nogil:
    return x + log1pf(expf(-x)) if x > 0 else log1pf(expf(x))


cdef inline double train_pair(
        float* input, float* outputs, const int32_t* output_index, Py_ssize_t count, float* input_step, Py_ssize_t dim,
        float learning_rate) noexcept nogil:
    """One context word against a centre and its negatives. A negative that is the centre itself is left out."""
    cdef double loss = 0
    cdef float score, rate
    cdef float* output
    cdef Py_ssize_t j
    memset(input_step, 0, dim * sizeof(float))
    for j in range(count):
        if j > 0 and output_index[j] == output_index[0]:
            continue
        output = outputs + output_index[j] * dim
        score = dot(input, output, dim)
        loss += softplus(score if j > 0 else -score)
        rate = learning_rate * ((1.0 if j == 0 else 0.0) - 1 / (1 + expf(-score)))
        add_scaled(input_step, rate, output, dim)
        add_scaled(output, rate, input, dim)
    add_scaled(input, 1, input_step, dim)
    return loss


cdef double train_window(
        float* inputs, const int32_t* context, Py_ssize_t before, Py_ssize_t after, float* outputs,
        const int32_t* output_index, Py_ssize_t count, float* scratch, Py_ssize_t dim,
        float learning_rate) noexcept nogil:
    cdef double loss = 0
    cdef Py_ssize_t i
    for i in range(-before, after + 1):
        if i != 0:
            loss += train_pair(
                inputs + context[i] * dim, outputs, output_index, count, scratch, dim, learning_rate)
    return loss


def train_batch(
        const float[:, ::1] input_rows, const float[:, ::1] output_rows, const int32_t[::1] tokens, Py_ssize_t first,
        const uint8_t[::1] before, const uint8_t[::1] after, const int32_t[:, ::1] outputs,
        float[:, ::1] input_deltas, float[:, ::1] output_deltas, float learning_rate):
    """Trains on the windows one after the other and returns what to add to the rows.

    Parameters:
        input_rows, output_rows: float32 (I, D) and (O, D), the values pulled; not changed.
        tokens: int32 (T,): the input row of each token, centres and the words around them, in the order of the text.
        first: the first centre's place among the tokens; the others follow it.
        before, after: uint8 (C,): how many tokens before and after each centre are its context.
        outputs: int32 (C, 1 + J): the output row of each centre, then those of its negatives.
        input_deltas, output_deltas: float32, shaped as the rows, overwritten with (value after - value before).
    Returns:
        The sum of the losses of all pairs, each taken before its own update (float64).
    Raises:
        ValueError, IndexError: shapes that do not fit, an index out of range; nothing was written.
    Threads: any; releases the GIL.
    """
    cdef Py_ssize_t centres = outputs.shape[0], dim = input_rows.shape[1], n
    if output_rows.shape[1] != dim or dim == 0:
        raise ValueError(f"input rows have {dim} columns and output rows {output_rows.shape[1]}: need the same number")
    if before.shape[0] != centres or after.shape[0] != centres or outputs.shape[1] < 1:
        raise ValueError("before, after and outputs need the shapes (C,), (C,) and (C, 1 + J)")
    if (input_deltas.shape[0] != input_rows.shape[0] or input_deltas.shape[1] != dim
            or output_deltas.shape[0] != output_rows.shape[0] or output_deltas.shape[1] != dim):
        raise ValueError("input_deltas and output_deltas need the shapes of the rows")
    for n in range(centres):
        if before[n] > first + n or first + n + after[n] >= tokens.shape[0] or first < 0:
            raise IndexError(f"the window of centre {n} leaves the {tokens.shape[0]} tokens")
    if centres == 0:
        input_deltas[:, :] = 0
        output_deltas[:, :] = 0
        return 0.0
    check_indices(&tokens[0], tokens.shape[0], input_rows.shape[0], "tokens")
    check_indices(&outputs[0, 0], centres * outputs.shape[1], output_rows.shape[0], "outputs")
    cdef vector[float] scratch
    scratch.resize(dim)
    cdef float* inputs_after = &input_deltas[0, 0]
    cdef float* outputs_after = &output_deltas[0, 0]
    cdef double total = 0
    with nogil:
        memcpy(inputs_after, &input_rows[0, 0], input_rows.shape[0] * dim * sizeof(float))
        memcpy(outputs_after, &output_rows[0, 0], output_rows.shape[0] * dim * sizeof(float))
        for n in range(centres):
            total += train_window(
                inputs_after, &tokens[first + n], before[n], after[n], outputs_after, &outputs[n, 0],
                outputs.shape[1], scratch.data(), dim, learning_rate)
        subtract(inputs_after, &input_rows[0, 0], input_rows.shape[0] * dim)
        subtract(outputs_after, &output_rows[0, 0], output_rows.shape[0] * dim)
    return total
