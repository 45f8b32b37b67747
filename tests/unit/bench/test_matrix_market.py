"""Ratings in MatrixMarket files as people make them: the same numbers, or an error that names the line."""

import gzip

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from intentpm.bench.tasks.data_error import DataError
from intentpm.bench.tasks.matrix_market import read_matrix_market
from intentpm.bench.tasks.ratings import load_ratings

BANNER = "%%MatrixMarket matrix coordinate real general\n"
TEXT = BANNER + "% made by hand\n3 4 3\n1 1 5\n3 2 4.5\n2 4 1\n"
DENSE = [[5, 0, 0, 0], [0, 0, 0, 1], [0, 4.5, 0, 0]]


def read(tmp_path, text):
    path = tmp_path / "m.mtx"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    matrix, notes = read_matrix_market(path)
    return matrix.toarray().tolist(), notes


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        (TEXT, 0),
        (TEXT[:-1], 0),
        ("\ufeff" + TEXT, 0),
        (TEXT.encode("utf-16"), 0),
        (TEXT.replace("\n", "\r\n"), 0),
        (TEXT.replace("\n", "\r"), 0),
        (gzip.compress(TEXT.encode()), 0),
        ("\n \n" + TEXT, 0),
        (TEXT.replace("\n", "\n\n"), 0),
        (TEXT.replace(" ", "\t").replace("%%MatrixMarket\tmatrix\tcoordinate", "%%MatrixMarket matrix coordinate"), 0),
        (TEXT.replace("MatrixMarket", "matrixmarket").replace("real general", "Integer GENERAL "), 0),
        (TEXT.replace("\n", " \n"), 0),
        (TEXT.replace("3 4 3\n", "3 4 3\u00a0% sizes\n"), 0),
        (TEXT.replace("\n1 1", "\n\ufeff1 1"), 1),
        (TEXT.replace("1 1 5", "1\u00a01\u00a05\u00a0"), 1),
        (TEXT.replace("1 1 5", "1 1 +5.0D0"), 1),
        (TEXT.replace("3 2", "% in between\n\n3 2"), 1),
        (TEXT.replace("4.5\n", "4.5 % good\x0c\n") + "% end\n\u00a0\n", 2),
    ],
)
def test_the_same_matrix_however_written(tmp_path, text, mended):
    assert read(tmp_path, text) == (
        DENSE, [f"m.mtx: lines with entries that were mended or left out: {mended}"] if mended else []
    )  # fmt: skip


def test_patterns_and_symmetry(tmp_path):
    text = "%%MatrixMarket matrix coordinate pattern symmetric\n3 3 2\n2 1\n3 3\n"
    assert read(tmp_path, text)[0] == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]


def test_big_matrices_are_those_that_scipy_wrote(tmp_path):
    made = scipy.sparse.random_array((300, 200), density=0.2, rng=np.random.default_rng(1))
    scipy.io.mmwrite(tmp_path / "m.mtx", made)
    assert np.array_equal(read_matrix_market(tmp_path / "m.mtx")[0].toarray(), made.toarray())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT.replace("4.5", "4,5"), r"line 5: need row, column and value .a finite number.*: '3 2 4,5'"),
        (TEXT.replace("4.5", "nan"), r"line 5: need row, column and value .*: '3 2 nan'"),
        (TEXT.replace("4.5", "4.5 9"), r"line 5: need .*: '3 2 4.5 9'"),
        (TEXT.replace("3 2 4.5", "3 2"), r"line 5: need .*: '3 2'"),
        (TEXT.replace("3 2 4.5", "\n3 two 4.5"), r"line 6: need .*: '3 two 4.5'"),
        ("\n" + TEXT.replace("3 2 4.5", "3,2,4.5"), r"line 6: need .*: '3,2,4.5'"),
        (TEXT.replace("1 1 5", "0 1 5"), r"Line 4: Row index out of bounds"),
        ("\n" + TEXT.replace("3 2 4.5", "3 5 4.5"), r"Line 6: Column index out of bounds"),
        (TEXT.replace("3 4 3", "3 4 4"), "Truncated file. Expected another 1 lines"),
        (TEXT.replace("3 4 3", "3 4 2"), "Too many lines"),
        (TEXT.replace("3 4 3", "3 4 999999999999"), "line 3 says 999999999999 entries, but fewer lines follow"),
        (TEXT.replace("3 4 3", "3 4"), "line 3: need the numbers of rows, columns and entries: '3 4'"),
        (TEXT.replace("real", "complex"), "needs one each of these .* real, .*: '%%MatrixMarket matrix coordinate co"),
        (TEXT.replace("real", "pattern"), r"line 4: need row and column, .*: '1 1 5'"),
        (TEXT.replace("coordinate", "array"), "ratings need the coordinate format"),
        (BANNER, "has no line with the numbers"),
        ("user,item\n", "is neither npz .* nor MatrixMarket, which begins with .*: 'user,item'"),
        ("", "is neither npz .* nor MatrixMarket"),
    ],
)
def test_wrong_lines_are_named(tmp_path, text, message):
    with pytest.raises(DataError, match=r"m\.mtx: .*" + message):
        read(tmp_path, text)


def test_rows_without_entries_get_no_key(tmp_path):
    rows = [f"{1 + step % 5 * 1_000_000} {1 + step} {step % 5}\n" for step in range(20)]
    path = tmp_path / "m.mtx"
    path.write_text(BANNER + "5000000 20 20\n" + "".join(rows))
    ratings = load_ratings(path)
    assert (ratings.users, ratings.items) == (5, 20)
    assert list(ratings.user_names) == [1, 1_000_001, 2_000_001, 3_000_001, 4_000_001]
    assert ratings.item_names[ratings.item[3]] == 1 + np.argsort(ratings.item)[3], "ids count from 1, as in the file"
    kept = load_ratings(path, keep_ids=True)
    assert (kept.users, kept.items) == (5_000_000, 20)
    assert set(kept.user.tolist()) == {0, 1_000_000, 2_000_000, 3_000_000, 4_000_000}
