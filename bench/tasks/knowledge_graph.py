"""Knowledge graphs: read from folders of triples, or generated."""

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import click
import numpy as np
from numpy.typing import NDArray

Triples = NDArray[np.int32]
Splits = dict[str, Triples]

SPLITS = ("train", "valid", "test")
TEXT_SUFFIXES = (".txt", ".tsv", ".del")
HELD_OUT_SHARE = 0.05
"""Of the generated triples, in the validation and in the test split each."""
DRAW_ROUNDS = 20


class KnowledgeGraphError(click.ClickException):
    """A knowledge graph that cannot be used; the message names the file or option and what is wrong with it."""

    def __init__(self, source: object, problem: str) -> None:
        super().__init__(f"{source}: {problem}")


@dataclass(frozen=True, slots=True)
class KnowledgeGraph:
    """Triples (head, relation, tail), int32 (n, 3), in three splits."""

    train: Triples
    valid: Triples
    test: Triples
    entities: int
    """Entities are numbered 0 to entities - 1."""
    relations: int
    source: str

    def everything(self) -> Triples:
        """All triples that are known to be true."""
        return np.concatenate([self.train, self.valid, self.test])


def load_knowledge_graph(folder: Path) -> KnowledgeGraph:
    """Reads a folder with ``triples.npz`` (arrays train, valid, test: whole numbers (n, 3), head, relation, tail) or
    the text files train, valid and test (.txt, .tsv or .del). These have a triple per line: names or numbers, separated
    by tabs or, in a line without any tab, by blanks. Names are numbered in alphabetical order.

    Raises KnowledgeGraphError.
    """
    if not folder.is_dir():
        raise KnowledgeGraphError(folder, "there is no such folder")
    archive = folder / "triples.npz"
    if archive.is_file():
        splits, entities, relations = _checked_ids(archive, _read_npz(archive))
    else:
        splits, entities, relations = _number({split: _read_text(folder, split) for split in SPLITS})
    return KnowledgeGraph(**splits, entities=entities, relations=relations, source=folder.absolute().name)


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    if not zipfile.is_zipfile(path):
        raise KnowledgeGraphError(path, "is not a readable npz file (not an archive, or cut short)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = sorted(set(SPLITS) - set(archive.files))
            if missing:
                raise KnowledgeGraphError(path, f"has no array {missing[0]!r}; found {', '.join(archive.files)}")
            return {split: archive[split] for split in SPLITS}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise KnowledgeGraphError(path, f"is not a readable npz file ({error})") from error


def _checked_ids(path: Path, splits: dict[str, NDArray[Any]]) -> tuple[Splits, int, int]:
    for split, triples in splits.items():
        if triples.ndim != 2 or triples.shape[1] != 3 or not np.issubdtype(triples.dtype, np.integer):
            raise KnowledgeGraphError(
                path, f"{split!r} has the shape {triples.shape} and dtype {triples.dtype}; need whole numbers (n, 3)"
            )
        if not len(triples):
            raise KnowledgeGraphError(path, f"{split!r} has no triples")
        if triples.min() < 0 or triples.max() >= 2**31 - 1:
            raise KnowledgeGraphError(path, f"{split!r} has an id outside 0 to 2^31 - 2")
    together = np.concatenate(list(splits.values()))
    entities, relations = int(together[:, [0, 2]].max()) + 1, int(together[:, 1].max()) + 1
    return {split: triples.astype(np.int32) for split, triples in splits.items()}, entities, relations


def _read_text(folder: Path, split: str) -> NDArray[np.str_]:
    paths = [folder / f"{split}{suffix}" for suffix in TEXT_SUFFIXES]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise KnowledgeGraphError(folder, f"has neither triples.npz nor {split}.txt, .tsv or .del")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KnowledgeGraphError(path, f"cannot be read as UTF-8 text ({error})") from error
    rows = [(number, _fields(line)) for number, line in enumerate(lines, 1) if line.strip()]
    for number, parts in rows:
        if len(parts) != 3:
            raise KnowledgeGraphError(path, f"line {number} has {len(parts)} fields; need head, relation and tail")
    if not rows:
        raise KnowledgeGraphError(path, "has no triples")
    return np.array([parts for _, parts in rows])


def _fields(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else line.split()


def _number(names: dict[str, NDArray[np.str_]]) -> tuple[Splits, int, int]:
    together = np.concatenate(list(names.values()))
    entity_names, entity = np.unique(together[:, [0, 2]], return_inverse=True)
    relation_names, relation = np.unique(together[:, 1], return_inverse=True)
    entity = entity.reshape(-1, 2)
    ids = np.stack([entity[:, 0], relation, entity[:, 1]], axis=1).astype(np.int32)
    bounds = np.cumsum([len(part) for part in names.values()])[:-1]
    splits = dict(zip(names, np.split(ids, bounds), strict=True))
    return splits, len(entity_names), len(relation_names)


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
        types = {field.name: field.type for field in fields(cls)}
        values: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = part.partition("=")
            if name not in types:
                raise KnowledgeGraphError("--generate", f"unknown part {part!r}; there are {', '.join(types)}")
            try:
                values[name] = float(value) if name == "zipf" else int(value.replace("_", ""))
            except ValueError:
                kind = "a number" if name == "zipf" else "a whole number"
                raise KnowledgeGraphError("--generate", f"{name}={value!r} is not {kind}") from None
        return cls(**values)

    def __post_init__(self) -> None:
        for name in ("entities", "relations", "triples", "types"):
            if not 1 <= getattr(self, name) < 2**31:
                raise KnowledgeGraphError("--generate", f"{name}={getattr(self, name)}: need 1 to 2^31 - 1")
        if not 0 <= self.zipf < np.inf:
            raise KnowledgeGraphError("--generate", f"zipf={self.zipf}: need a finite number >= 0")
        if self.types > self.entities:
            raise KnowledgeGraphError("--generate", f"types={self.types}: more than the {self.entities} entities")
        if self.triples < 100:
            raise KnowledgeGraphError("--generate", f"triples={self.triples}: need at least 100 for three splits")


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
        raise KnowledgeGraphError("--generate", f"triples={spec.triples}: there are hardly more than {len(triples)}")
    triples = triples[random.permutation(len(triples))[: spec.triples]]
    held_out = max(1, round(HELD_OUT_SHARE * spec.triples))
    valid, test, train = np.split(triples, [held_out, 2 * held_out])
    return KnowledgeGraph(train, valid, test, spec.entities, spec.relations, f"generated ({spec.types} types)")


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
