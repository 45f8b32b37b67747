"""Triples as text: a line each, of names that are numbered through a dictionary.

Lines are read on a fast path, which takes what lies between two tabs as a name, whatever it is. What a name is without
the white space around it is decided once per distinct form, not once per line. Lines that have not three such names
take the slow path.
"""

import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.tasks.data_error import DataError
from intentpm.bench.tasks.text_file import COMPRESSED_SUFFIXES, STRAY, open_text, shown

Triples = NDArray[np.int32]

SUFFIXES = (".txt", ".tsv", ".del")
FIELDS = ("head", "relation", "tail")
HEADER = ({"head", "subject", "source"}, {"relation", "predicate", "property"}, {"tail", "object", "target"})


class _IrregularError(ValueError):
    """A line that the fast path cannot take. A ValueError, as for the wrong number of fields."""


class _Forms(dict[str, int]):
    """A number for each form of a name, in the order they come."""

    def __init__(self) -> None:
        self.names: list[str] = []
        """By number: the form without what does not belong to the name."""

    def __missing__(self, form: str) -> int:
        name = form.strip(STRAY)
        if not name:
            raise _IrregularError
        self.names.append(name)
        self[form] = number = len(self)
        return number


@dataclass(slots=True)
class _Split:
    """One file's triples, as numbers of forms, and what was odd in it."""

    path: Path
    ids: "array[int]" = field(default_factory=lambda: array("i"))
    blank: int = 0
    repaired: int = 0
    header: bool = False


@dataclass(frozen=True, slots=True)
class NamedTriples:
    """Triples as numbers of names, which are in alphabetical order."""

    splits: dict[str, Triples]
    entities: Sequence[str]
    relations: Sequence[str]
    notes: Sequence[str]
    """What was skipped, repaired or looks wrong: a line each."""


def read_named_triples(folder: Path, names: Iterable[str]) -> NamedTriples:
    """Reads the files ``names`` (with one of SUFFIXES, also compressed) of ``folder``. Raises DataError."""
    entities, relations = _Forms(), _Forms()
    splits = {name: _read(_find(folder, name), entities, relations) for name in names}
    forms = {name: np.frombuffer(split.ids, np.intc).reshape(-1, 3) for name, split in splits.items()}
    stray = (_stray(entities), _stray(relations))
    notes = [note for name, split in splits.items() for note in _notes(split, forms[name], stray)]
    entity_names, entity = _numbered(entities, [rows[:, [0, 2]] for rows in forms.values()])
    relation_names, relation = _numbered(relations, [rows[:, 1] for rows in forms.values()])
    notes += _look_alikes("entities", entity_names) + _look_alikes("relations", relation_names)
    numbered = {
        name: np.stack([entity[rows[:, 0]], relation[rows[:, 1]], entity[rows[:, 2]]], axis=1)
        for name, rows in forms.items()
    }
    return NamedTriples(numbered, entity_names, relation_names, notes)


def _find(folder: Path, name: str) -> Path:
    paths = (folder / f"{name}{suffix}{packed}" for suffix in SUFFIXES for packed in ("", *COMPRESSED_SUFFIXES))
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        packed = f"{', '.join(COMPRESSED_SUFFIXES[:-1])} or {COMPRESSED_SUFFIXES[-1]}"
        raise DataError(folder, f"has neither triples.npz nor {name}.txt, .tsv or .del (or one of these with {packed})")
    return path


def _read(path: Path, entities: _Forms, relations: _Forms) -> _Split:
    split = _Split(path)
    extend = split.ids.extend
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            try:
                head, relation, tail = line.rstrip("\n").split("\t")
                extend((entities[head], relations[relation], entities[tail]))
            except ValueError:
                if names := _irregular(split, number, line):
                    extend((entities[names[0]], relations[names[1]], entities[names[2]]))
    if _is_header(split.ids[:3], entities, relations):
        del split.ids[:3]
        split.header = True
    if not split.ids:
        raise DataError(path, "has no triples")
    return split


def _irregular(split: _Split, number: int, line: str) -> list[str] | None:
    """The three names of a line with blanks for tabs, or tabs at its ends; None for a blank one. Raises DataError."""
    words = line.strip(STRAY)
    if not words:
        split.blank += 1
        return None
    names = [name.strip(STRAY) for name in words.split("\t" if "\t" in words else " ")]
    if "\t" not in words:
        names = [name for name in names if name]
    if len(names) != len(FIELDS) or not all(names):
        found = f"has {len(names)} field{'s'[: len(names) > 1]}{'' if all(names) else ', empty ones among them'}"
        need = "need head, relation and tail, separated by tabs (or by blanks, in a line without tabs)"
        raise DataError(split.path, f"line {number} {found}; {need}: {shown(line)}")
    split.repaired += words != line.strip(" \n")
    return names


def _is_header(first: "array[int]", entities: _Forms, relations: _Forms) -> bool:
    forms = zip(first, (entities, relations, entities), strict=False)
    return len(first) == len(FIELDS) and all(
        names.names[number].lower() in words for (number, names), words in zip(forms, HEADER, strict=True)
    )


def _numbered(forms: _Forms, columns: Iterable[Triples]) -> tuple[list[str], NDArray[np.int32]]:
    """The names in use, sorted, and by the number of a form that of its name."""
    used = np.zeros(len(forms), bool)
    for column in columns:
        used[column] = True
    of_used = [forms.names[form] for form in np.flatnonzero(used).tolist()]
    names = sorted(set(of_used))
    number = {name: position for position, name in enumerate(names)}
    numbers = np.zeros(len(forms), np.int32)
    numbers[used] = np.fromiter((number[name] for name in of_used), np.int32, len(of_used))
    return names, numbers


# -- what to say about it ----------------------------------------------------------------------------------------------


def _notes(split: _Split, rows: Triples, stray: tuple[NDArray[np.bool_], NDArray[np.bool_]]) -> list[str]:
    entity, relation = stray
    repaired = split.repaired + int((entity[rows[:, 0]] | relation[rows[:, 1]] | entity[rows[:, 2]]).sum())
    parts = [
        *(["its header line is left out"] if split.header else []),
        *([f"blank lines left out: {split.blank:,}"] if split.blank else []),
        *([f"lines with white space around a name, which is left out: {repaired:,}"] if repaired else []),
    ]
    return [f"{split.path.name}: {'; '.join(parts)}"] if parts else []


def _stray(forms: _Forms) -> NDArray[np.bool_]:
    """By number: whether the form is more than the name."""
    return np.fromiter((form != name for form, name in zip(forms, forms.names, strict=True)), bool, len(forms))


def _look_alikes(what: str, names: Sequence[str]) -> list[str]:
    known, seen, pairs = set(names), dict[str, str](), []
    for name in names:
        if name.isascii():
            continue
        plain = " ".join(unicodedata.normalize("NFKC", name).split())
        other = plain if plain != name and plain in known else seen.setdefault(plain, name)
        if other != name:
            pairs.append((other, name))
    if not pairs:
        return []
    example = f"such as {pairs[0][0]!a} and {pairs[0][1]!a}"
    return [f"{what} that differ only in how Unicode writes them, and stay apart: {len(pairs):,}, {example}"]
