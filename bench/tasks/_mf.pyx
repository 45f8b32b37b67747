"""Compute kernel of matrix factorisation: stochastic gradient descent over one batch of ratings.

A row holds a key's factors and, in its last column, its bias. The prediction of a rating is
``user_bias + item_bias + user_factors . item_factors``, in the units of the ratings passed in.
Shape letters: R ratings of the batch, U and I different users and items in it, D row length (factors + 1).
"""

from libc.stdint cimport int32_t
from libc.string cimport memcpy

from intentpm.bench.tasks._vectors cimport check_indices, subtract


cdef inline float predict(const float* user, const float* item, Py_ssize_t factors) noexcept nogil:
    cdef float dot = 0
    cdef Py_ssize_t column
    for column in range(factors):
        dot += user[column] * item[column]
    return dot + user[factors] + item[factors]


cdef inline float step(
        float* user, float* item, Py_ssize_t factors, float rating, float learning_rate, float shrink) noexcept nogil:
    # One gradient step on one rating; both rows move from their values before the step. Returns the error before it.
    cdef float error = rating - predict(user, item, factors)
    cdef float rate = learning_rate * error
    cdef float user_value
    cdef Py_ssize_t column
    for column in range(factors):
        user_value = user[column]
        user[column] = shrink * user_value + rate * item[column]
        item[column] = shrink * item[column] + rate * user_value
    user[factors] = shrink * user[factors] + rate
    item[factors] = shrink * item[factors] + rate
    return error


cdef double descend(
        float* users, float* items, Py_ssize_t width, const int32_t* user_index, const int32_t* item_index,
        const float* ratings, Py_ssize_t count, float learning_rate, float shrink) noexcept nogil:
    cdef double squared_error = 0
    cdef float error
    cdef Py_ssize_t n
    for n in range(count):
        error = step(
            users + user_index[n] * width, items + item_index[n] * width, width - 1, ratings[n], learning_rate, shrink)
        squared_error += <double>error * error
    return squared_error


cdef object check_batch(
        Py_ssize_t user_width, Py_ssize_t item_width, Py_ssize_t users, Py_ssize_t items,
        const int32_t[::1] user_index, const int32_t[::1] item_index, const float[::1] ratings):
    if user_width != item_width or user_width < 1:
        raise ValueError(f"user rows have {user_width} columns and item rows {item_width}: need the same number, >= 1")
    if not user_index.shape[0] == item_index.shape[0] == ratings.shape[0]:
        raise ValueError(
            f"{user_index.shape[0]} user indices, {item_index.shape[0]} item indices, {ratings.shape[0]} ratings")
    if ratings.shape[0]:
        check_indices(&user_index[0], user_index.shape[0], users, "user_index")
        check_indices(&item_index[0], item_index.shape[0], items, "item_index")


def train_batch(
        const float[:, ::1] user_rows, const float[:, ::1] item_rows,
        const int32_t[::1] user_index, const int32_t[::1] item_index, const float[::1] ratings,
        float[:, ::1] user_deltas, float[:, ::1] item_deltas, float learning_rate, float l2):
    """Runs SGD over the ratings in order and returns what to add to the rows.

    Each rating sees the updates of those before it, so one rank's result does not depend on how its ratings are cut
    into batches. The objective per rating is ``(error^2 + l2 * (|user row|^2 + |item row|^2)) / 2``.

    Parameters:
        user_rows, item_rows: float32 (U, D) and (I, D), the values pulled; not changed.
        user_index, item_index: int32 (R,), the row of each rating's user and item.
        ratings: float32 (R,), the mean already subtracted.
        user_deltas, item_deltas: float32 (U, D) and (I, D), overwritten with (value after - value before).
    Returns:
        The sum of the squared errors, each taken before its rating's own update (float64).
    Raises:
        ValueError, IndexError: shapes that do not fit, an index out of range; nothing was written.
    Threads: any; releases the GIL.
    """
    check_batch(user_rows.shape[1], item_rows.shape[1], user_rows.shape[0], item_rows.shape[0],
                user_index, item_index, ratings)
    if (user_deltas.shape[0] != user_rows.shape[0] or user_deltas.shape[1] != user_rows.shape[1]
            or item_deltas.shape[0] != item_rows.shape[0] or item_deltas.shape[1] != item_rows.shape[1]):
        raise ValueError("user_deltas and item_deltas need the shapes of user_rows and item_rows")
    cdef Py_ssize_t count = ratings.shape[0]
    if count == 0:
        user_deltas[:, :] = 0
        item_deltas[:, :] = 0
        return 0.0
    cdef Py_ssize_t width = user_rows.shape[1]
    cdef Py_ssize_t user_values = user_rows.shape[0] * width
    cdef Py_ssize_t item_values = item_rows.shape[0] * width
    cdef float* users = &user_deltas[0, 0]
    cdef float* items = &item_deltas[0, 0]
    cdef double squared_error
    with nogil:
        memcpy(users, &user_rows[0, 0], user_values * sizeof(float))
        memcpy(items, &item_rows[0, 0], item_values * sizeof(float))
        squared_error = descend(
            users, items, width, &user_index[0], &item_index[0], &ratings[0], count, learning_rate,
            1 - learning_rate * l2)
        subtract(users, &user_rows[0, 0], user_values)
        subtract(items, &item_rows[0, 0], item_values)
    return squared_error


def squared_error(
        const float[:, ::1] user_rows, const float[:, ::1] item_rows,
        const int32_t[::1] user_index, const int32_t[::1] item_index, const float[::1] ratings):
    """Returns the sum of the squared errors of the predictions (float64). Arguments and errors as in train_batch."""
    check_batch(user_rows.shape[1], item_rows.shape[1], user_rows.shape[0], item_rows.shape[0],
                user_index, item_index, ratings)
    cdef Py_ssize_t width = user_rows.shape[1]
    cdef double total = 0
    cdef float error
    cdef Py_ssize_t n
    with nogil:
        for n in range(ratings.shape[0]):
            error = ratings[n] - predict(&user_rows[user_index[n], 0], &item_rows[item_index[n], 0], width - 1)
            total += <double>error * error
    return total
