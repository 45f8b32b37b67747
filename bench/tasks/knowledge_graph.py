"""Knowledge graphs: read from folders of triples, or generated."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.tasks.data_error import DataError
from intentpm.bench.tasks.npz import read_npz
from intentpm.bench.tasks.numbering import MAX_KEYS, Names, gaps, number_densely
from intentpm.bench.tasks.spec import parse_spec
from intentpm.bench.tasks.triples_text import read_named_triples

Triples = NDArray[np.int32]

SPLITS = ("train", "valid", "test")
HELD_OUT_SHARE = 0.05
"""Of the generated triples, in the validation and in the test split each."""
DRAW_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class KnowledgeGraph:
    """Triples (head, relation, tail), int32 (n, 3), in three splits."""

    train: Triples
    valid: Triples
    test: Triples
    entity_names: Names
    """By number of an entity: its name, or id, in the source. Likewise of relations."""
    relation_names: Names
    source: str
    notes: Sequence[str] = ()
    """What was skipped, repaired or looks wrong: a line each."""

    @property
    def entities(self) -> int:
        """How many there are."""
        return len(self.entity_names)

    @property
    def relations(self) -> int:
        """How many there are."""
        return len(self.relation_names)

    def everything(self) -> Triples:
        """All triples that are known to be true."""
        return np.concatenate([self.train, self.valid, self.test])


def load_knowledge_graph(folder: Path, keep_ids: bool = False) -> KnowledgeGraph:
    """Reads a folder with ``triples.npz`` (arrays train, valid, test: whole numbers (n, 3), head, relation, tail) or
    the text files train, valid and test (.txt, .tsv or .del, also compressed). These have a triple per line: names or
    numbers, separated by tabs or, in a line without any tab, by blanks.

    Names are numbered in alphabetical order, ids of arrays in theirs, without gaps; with ``keep_ids`` the numbers are
    those ids, and ids in between are entities too. Raises DataError.
    """
    if not folder.is_dir():
        raise DataError(folder, "is no folder" if folder.exists() else "there is no such folder")
    source, archive = folder.absolute().name, folder / "triples.npz"
    if archive.is_file():
        return _from_arrays(archive, read_npz(archive, SPLITS), source, keep_ids)
    named = read_named_triples(folder, SPLITS)
    notes = (*named.notes, *_constant(named.entities))
    return KnowledgeGraph(**named.splits, entity_names=named.entities, relation_names=named.relations, source=source,
                          notes=notes)  # fmt: skip


def _constant(entities: Names) -> list[str]:
    return ["all triples are of one entity: there is nothing to rank"] if len(entities) == 1 else []


def _from_arrays(path: Path, splits: dict[str, NDArray[Any]], source: str, keep_ids: bool) -> KnowledgeGraph:
    for split, triples in splits.items():
        _check_ids(path, split, triples, keep_ids)
    together = np.concatenate([part.astype(np.int64) for part in splits.values()])
    entities: Names
    relations: Names
    if keep_ids:
        triples = together.astype(np.int32)
        entities, relations = (range(int(triples[:, columns].max()) + 1) for columns in ([0, 2], 1))
    else:
        entity, entities = number_densely(together[:, [0, 2]])
        relation, relations = number_densely(together[:, 1])
        triples = np.stack([entity[:, 0], relation, entity[:, 1]], axis=1)
    bounds = np.cumsum([len(part) for part in splits.values()])[:-1]
    numbered = dict(zip(splits, np.split(triples, bounds), strict=True))
    notes = (*gaps("entities", entities), *gaps("relations", relations), *_constant(entities))
    return KnowledgeGraph(**numbered, entity_names=entities, relation_names=relations, source=source, notes=notes)


def _check_ids(path: Path, split: str, triples: NDArray[Any], keep_ids: bool) -> None:
    if triples.ndim != 2 or triples.shape[1] != 3 or not np.issubdtype(triples.dtype, np.integer):
        raise DataError(
            path, f"{split!r} has the shape {triples.shape} and dtype {triples.dtype}; need whole numbers (n, 3)"
        )
    if not len(triples):
        raise DataError(path, f"{split!r} has no triples")
    if int(triples.min()) < 0:
        raise DataError(path, f"{split!r} has the id {int(triples.min())}; need ids from 0")
    most, where = (MAX_KEYS - 2, "2^31 - 2 where ids are kept") if keep_ids else (2**63 - 1, "2^63 - 1")
    if int(triples.max()) > most:
        raise DataError(path, f"{split!r} has the id {int(triples.max())}; need 0 to {where}")


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """What ``--generate`` makes: entities of hidden types, relations that lead from each type to one other.

    Entities are drawn with Zipf frequencies, so a good model ranks a popular entity of the right type first.
    """

    entities: int = 10_000
    relations: int = 20
    triples: int = 200_000
    types: int = 50
    zipf: float = 0.8
    """The k-th most popular entity has a share proportional to k^-zipf."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``entities=..,relations=..,triples=..,types=..,zipf=..``; parts left out keep their defaults."""
        return parse_spec(cls, text)

    def __post_init__(self) -> None:
        for name in ("entities", "relations", "triples", "types"):
            if not 1 <= getattr(self, name) < 2**31:
                raise DataError("--generate", f"{name}={getattr(self, name)}: need 1 to 2^31 - 1")
        if not 0 <= self.zipf < np.inf:
            raise DataError("--generate", f"zipf={self.zipf}: need a finite number >= 0")
        if self.types > self.entities:
            raise DataError("--generate", f"types={self.types}: more than the {self.entities} entities")
        if self.triples < 100:
            raise DataError("--generate", f"triples={self.triples}: need at least 100 for three splits")


def generate_knowledge_graph(spec: GraphSpec, seed: int = 0) -> KnowledgeGraph:
    """Draws distinct triples; the same for the same ``spec`` and ``seed``. Every rank generates all of it."""
    random = np.random.default_rng([seed, 2])
    # Entity e has type e % types: each type has its share of popular and rare entities.
    next_type = np.stack([random.permutation(spec.types) for _ in range(spec.relations)])
    shares = np.cumsum((np.arange(spec.entities) + 1.0) ** -spec.zipf)
    triples = np.empty((0, 3), np.int32)
    for _ in range(DRAW_ROUNDS):
        missing = spec.triples - len(triples)
        if missing <= 0:
            break
        triples = np.concatenate([triples, _draw_triples(spec, next_type, shares, 2 * missing, random)])
        triples = triples[np.sort(np.unique(triples, axis=0, return_index=True)[1])]
    if len(triples) < spec.triples:
        raise DataError("--generate", f"triples={spec.triples}: there are hardly more than {len(triples)}")
    triples = triples[random.permutation(len(triples))[: spec.triples]]
    held_out = max(1, round(HELD_OUT_SHARE * spec.triples))
    valid, test, train = np.split(triples, [held_out, 2 * held_out])
    name = f"generated ({spec.types} types)"
    return KnowledgeGraph(train, valid, test, range(spec.entities), range(spec.relations), name)


def _draw_triples(
    spec: GraphSpec,
    next_type: NDArray[np.int64],
    shares: NDArray[np.float64],
    count: int,
    random: np.random.Generator,
) -> Triples:
    def entity() -> NDArray[np.int64]:
        drawn = np.searchsorted(shares, random.random(count) * shares[-1])
        return np.minimum(drawn, spec.entities - 1)

    head, relation = entity(), random.integers(spec.relations, size=count)
    wanted = next_type[relation, head % spec.types]
    other = entity()
    # The entity of the wanted type that is about as popular as the one drawn.
    tail = other - other % spec.types + wanted
    tail = np.where(tail < spec.entities, tail, wanted)
    return np.stack([head, relation, tail], axis=1).astype(np.int32)
