"""Text to learn word vectors from: read from files, or generated."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.tasks.data_error import DataError
from intentpm.bench.tasks.numbering import Names
from intentpm.bench.tasks.spec import parse_spec
from intentpm.bench.tasks.text_file import COMPRESSED_SUFFIXES, open_text
from intentpm.bench.tasks.word_similarity import SimilaritySet, read_similarity_sets

TEXT = "train.txt"
SIMILARITY_FOLDER = "wordsim"
ARTICLE_TOKENS = 500
"""Length of a generated article."""
GENERATED_PAIRS = 2_000


@dataclass(frozen=True, slots=True)
class Corpus:
    """Articles of tokens; a word's key is its rank by falling count."""

    tokens: NDArray[np.int32]
    """int32 (T,), the articles one after the other."""
    starts: NDArray[np.int64]
    """int64 (A + 1,): where each article begins, and T."""
    counts: NDArray[np.int64]
    """int64 (words,): how often each word occurs."""
    names: Names
    """By key: the word."""
    source: str
    similarity: Mapping[str, SimilaritySet] = field(default_factory=dict)
    """By measure: what the vectors are evaluated on."""
    notes: Sequence[str] = ()

    @property
    def words(self) -> int:
        """How many different ones there are."""
        return len(self.counts)


def load_corpus(path: Path, min_count: int, similarity: Path | None = None) -> Corpus:
    """Reads a text file, or ``train.txt`` of a folder, also compressed: an article per line, words between blanks.

    Words that occur less than ``min_count`` times are left out. ``similarity`` is the folder of the similarity sets;
    without it, ``wordsim`` beside the text's folder or in it, if there is one. Raises DataError.
    """
    file = _text_of(path)
    with open_text(file) as lines:
        articles = [line.split() for line in lines]
    counts = Counter(word for article in articles for word in article)
    kept = sorted(
        (word for word, count in counts.items() if count >= min_count), key=lambda word: (-counts[word], word)
    )
    if len(kept) < 2:
        raise DataError(file, f"has {len(kept)} words that occur {min_count} times; need 2 at least")
    key_of = {word: key for key, word in enumerate(kept)}
    keys = [np.array([key_of[word] for word in article if word in key_of], np.int32) for article in articles]
    folder = similarity or next(filter(Path.is_dir, _similarity_folders(file)), None)
    sets = read_similarity_sets(folder, key_of) if folder else {}
    notes = () if sets else (f"no folder {SIMILARITY_FOLDER} beside the text: its vectors will not be evaluated",)
    return Corpus(
        np.concatenate(keys), starts_of([len(article) for article in keys]),
        np.array([counts[word] for word in kept]), kept, file.absolute().parent.name, sets, notes,
    )  # fmt: skip


def _text_of(path: Path) -> Path:
    if not path.exists():
        raise DataError(path, "there is no such file or folder")
    if path.is_file():
        return path
    for suffix in ("", *COMPRESSED_SUFFIXES):
        if (file := path / (TEXT + suffix)).is_file():
            return file
    raise DataError(path, f"has no {TEXT}, plain or compressed ({', '.join(COMPRESSED_SUFFIXES)})")


def _similarity_folders(file: Path) -> Iterator[Path]:
    folder = file.absolute().parent
    return (parent / SIMILARITY_FOLDER for parent in (folder, folder.parent))


def starts_of(lengths: Sequence[int]) -> NDArray[np.int64]:
    """Where each of the articles begins, and where the last ends: int64 (A + 1,)."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


@dataclass(frozen=True, slots=True)
class CorpusSpec:
    """What ``--generate`` makes: articles of one topic each, words of a topic or of all, with Zipf frequencies.

    Word w belongs to topic w % topics. Good vectors are alike within a topic.
    """

    words: int = 10_000
    tokens: int = 1_000_000
    topics: int = 20
    purity: float = 0.5
    """Share of an article's tokens that are of its topic."""
    zipf: float = 1.0
    """The k-th most frequent word has a share proportional to k^-zipf."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``words=..,tokens=..,topics=..,purity=..,zipf=..``; parts left out keep their defaults."""
        return parse_spec(cls, text)

    def __post_init__(self) -> None:
        for name in ("words", "tokens", "topics"):
            if not 2 <= getattr(self, name) < 2**31:
                raise DataError("--generate", f"{name}={getattr(self, name)}: need 2 to 2^31 - 1")
        if self.topics > self.words:
            raise DataError("--generate", f"topics={self.topics}: more than the {self.words} words")
        if not 0 <= self.purity <= 1 or not 0 <= self.zipf < np.inf:
            raise DataError("--generate", "need purity from 0 to 1 and a finite zipf >= 0")


def generate_corpus(spec: CorpusSpec, seed: int = 0) -> Corpus:
    """Draws articles; the same for the same ``spec`` and ``seed``. Every rank generates all of them."""
    random = np.random.default_rng([seed, 4])
    shares = np.cumsum((np.arange(spec.words) + 1.0) ** -spec.zipf)
    drawn = np.searchsorted(shares, random.random(spec.tokens) * shares[-1]).clip(max=spec.words - 1)
    articles = -(-spec.tokens // ARTICLE_TOKENS)
    topic = np.repeat(random.integers(spec.topics, size=articles), ARTICLE_TOKENS)[: spec.tokens]
    # The word of the wanted topic that is about as frequent as the one drawn.
    of_topic = drawn - drawn % spec.topics + topic
    of_topic = np.where(of_topic < spec.words, of_topic, topic)
    tokens = np.where(random.random(spec.tokens) < spec.purity, of_topic, drawn).astype(np.int32)
    starts = np.minimum(np.arange(articles + 1) * ARTICLE_TOKENS, spec.tokens)
    counts = np.bincount(tokens, minlength=spec.words)
    name = f"generated ({spec.topics} topics)"
    return Corpus(tokens, starts, counts, range(spec.words), name, {"topics": _pairs(spec, random)})


def _pairs(spec: CorpusSpec, random: np.random.Generator) -> SimilaritySet:
    """Pairs of the more frequent words, half of them of one topic: similarity 1, the others 0."""
    words = max(spec.topics, spec.words // 5)
    first = random.integers(words, size=GENERATED_PAIRS)
    second = random.integers(words, size=GENERATED_PAIRS)
    alike = first % spec.topics + spec.topics * random.integers(words // spec.topics, size=GENERATED_PAIRS)
    second = np.where(np.arange(GENERATED_PAIRS) % 2, alike, second)
    return SimilaritySet(first, second, (first % spec.topics == second % spec.topics).astype(np.float64))
