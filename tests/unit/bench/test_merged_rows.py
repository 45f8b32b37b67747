"""Rows that were pulled twice are one."""

import numpy as np

from intentpm.bench.tasks.merged_rows import merge_rows


def test_each_key_has_one_row():
    first = np.array([7, 2]), np.array([[7.0], [2.0]])
    second = np.array([2, 5, 5, 7]), np.array([[2.0], [5.0], [5.0], [7.0]])
    keys, rows, (of_first, of_second) = merge_rows([first, second])
    assert keys.tolist() == [2, 5, 7]
    assert rows[:, 0].tolist() == [2, 5, 7]
    assert of_first.tolist() == [2, 0]
    assert of_second.tolist() == [0, 1, 1, 2]
