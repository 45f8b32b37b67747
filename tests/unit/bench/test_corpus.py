"""Text read and generated, and what a rank trains of it."""

import lzma
from itertools import pairwise

import numpy as np
import pytest

from intentpm.bench.tasks.corpus import Corpus, CorpusSpec, generate_corpus, load_corpus
from intentpm.bench.tasks.data_error import DataError
from intentpm.bench.tasks.word_similarity import SimilaritySet
from intentpm.bench.tasks.wv import articles_of_rank, keep_probabilities, window_sizes

TEXT = "b a b c\n\nb a d\n"


def write(folder):
    (folder / "text").mkdir()
    (folder / "text/train.txt.xz").write_bytes(lzma.compress(TEXT.encode()))
    (folder / "wordsim").mkdir()
    (folder / "wordsim/ws-353-all.tsv").write_text("a\tb\t5.5\na\td\t1\n")
    return folder / "text"


def test_words_are_keys_by_falling_count(tmp_path):
    corpus = load_corpus(write(tmp_path), min_count=2)
    assert list(corpus.names) == ["b", "a"]
    assert corpus.counts.tolist() == [3, 2]
    assert corpus.tokens.tolist() == [0, 1, 0, 0, 1]
    assert corpus.starts.tolist() == [0, 3, 3, 5]
    pairs = corpus.similarity["ws353"]
    assert (pairs.first.tolist(), pairs.second.tolist(), pairs.score.tolist()) == ([1], [0], [5.5])


def test_a_plain_file_without_similarity_sets(tmp_path):
    (tmp_path / "any.txt").write_text(TEXT)
    corpus = load_corpus(tmp_path / "any.txt", min_count=1)
    assert list(corpus.names) == ["b", "a", "c", "d"]
    assert not corpus.similarity
    assert len(corpus.notes) == 1


def test_errors_name_the_place(tmp_path):
    with pytest.raises(DataError, match="none: there is no such file"):
        load_corpus(tmp_path / "none", 1)
    with pytest.raises(DataError, match="has no train"):
        load_corpus(tmp_path, 1)
    folder = write(tmp_path)
    with pytest.raises(DataError, match="need 2 at least"):
        load_corpus(folder, 3)
    (tmp_path / "wordsim/ws-353-all.tsv").write_text("a\tb\t5.5\na\td\n")
    with pytest.raises(DataError, match=r"ws-353-all.tsv: line 2 is not word, word, number"):
        load_corpus(folder, 1)
    with pytest.raises(DataError, match="topics=9: more than"):
        CorpusSpec.parse("words=5,topics=9")


def test_generated_text_has_topics():
    spec = CorpusSpec(words=200, tokens=20_000, topics=4, purity=0.8)
    corpus, again = (generate_corpus(spec, seed=3) for _ in range(2))
    np.testing.assert_array_equal(corpus.tokens, again.tokens)
    assert corpus.counts.sum() == 20_000 == corpus.starts[-1]
    for first, last in pairwise(corpus.starts):
        topics = np.bincount(corpus.tokens[first:last] % 4, minlength=4) / (last - first)
        assert topics.max() > 0.7


def test_ranks_share_the_articles_evenly():
    lengths = np.random.default_rng(0).integers(1, 400, size=101)
    corpus = Corpus(np.zeros(lengths.sum(), np.int32), np.r_[0, np.cumsum(lengths)], np.ones(2), ["a", "b"], "x")
    parts = [articles_of_rank(corpus, rank, 3, seed=0) for rank in range(3)]
    assert sorted(np.concatenate(parts)) == list(range(101))
    tokens = [lengths[part].sum() for part in parts]
    assert max(tokens) - min(tokens) < 400


def test_frequent_words_are_thinned_out():
    counts = np.array([9_000, 999, 1])
    keep = keep_probabilities(counts, 0.01)
    assert keep[0] == pytest.approx(np.sqrt(0.01 / 0.9) + 0.01 / 0.9)
    assert keep[2] == 1
    assert keep_probabilities(counts, 0).tolist() == [1, 1, 1]


def test_windows_stay_within_their_article():
    starts = np.array([0, 1, 1, 41, 44])
    before, after = window_sizes(starts, 3, np.random.default_rng(0))
    for first, last in pairwise(starts):
        for place in range(first, last):
            assert before[place] <= place - first
            assert after[place] < last - place
    inner = slice(4, 38)
    assert (before[inner] == after[inner]).all(), "where the article does not end, a window has two equal sides"
    assert before.max() == 3


def test_correlation_of_cosines_with_scores():
    vectors = np.array([[1, 0], [2, 0.1], [0, 3], [-1, 0]], np.float32)
    pairs = SimilaritySet(np.array([5, 5, 5]), np.array([6, 8, 9]), np.array([9.0, 5.0, 1.0]))
    keys = np.array([5, 6, 8, 9])
    assert pairs.correlation(vectors, keys) == pytest.approx(1)
    assert pairs.correlation(vectors[[0, 3, 2, 1]], keys) == pytest.approx(-1)
    assert np.isnan(pairs.correlation(np.zeros_like(vectors), keys))
