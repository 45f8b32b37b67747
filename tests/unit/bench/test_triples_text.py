"""Triples as people write them down."""

import gzip
import lzma
import resource

import numpy as np
import pytest

from intentpm.bench.tasks.data_error import DataError
from intentpm.bench.tasks.knowledge_graph import load_knowledge_graph

TRIPLES = [("Ann", "knows", "Bob"), ("Bob", "lives in", "New York"), ("Ann", "knows", "Cid")]
PLAIN = "".join("\t".join(triple) + "\n" for triple in TRIPLES)


def folder_of(tmp_path, train, suffix=".txt"):
    contents = train.encode() if isinstance(train, str) else train
    (tmp_path / f"train{suffix}").write_bytes(contents)
    for split in ("valid", "test"):
        (tmp_path / f"{split}.txt").write_text("Ann\tknows\tBob\n")
    return tmp_path


def load(tmp_path, train, suffix=".txt"):
    return load_knowledge_graph(folder_of(tmp_path, train, suffix))


def named(graph):
    return [(graph.entity_names[h], graph.relation_names[r], graph.entity_names[t]) for h, r, t in graph.train.tolist()]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (PLAIN, None),
        (PLAIN.rstrip("\n"), None),
        (PLAIN.replace("\n", "\r\n"), None),
        (PLAIN.replace("\n", "\r"), None),
        ("\ufeff" + PLAIN, None),
        (PLAIN.encode("utf-16"), None),
        (PLAIN + "\n \n\t\t\n\u00a0\n", "blank lines left out: 4"),
        (PLAIN + "\x1a", "blank lines left out: 1"),
        (PLAIN.replace("Bob\n", "Bob \n"), "around a name, which is left out: 1"),
        (PLAIN.replace("\n", "\u00a0\n"), "around a name, which is left out: 3"),
        (PLAIN.replace("\n", "\t\n"), "around a name, which is left out: 3"),
        (PLAIN.replace("\n", "\t\t \n"), "around a name, which is left out: 3"),
        (PLAIN.replace("Ann", " Ann"), "around a name, which is left out: 2"),
        (PLAIN.replace("\t", " \t "), "around a name, which is left out: 3"),
        (PLAIN.replace("\n", "\u2028\n").replace("knows", "knows\u3000"), "around a name, which is left out: 3"),
        ("\ufeff".join(["", *PLAIN.splitlines(keepends=True)]), "around a name, which is left out: 2"),
        ("\nhead\trelation\ttail\n" + PLAIN, "its header line is left out; blank lines left out: 1"),
        ("Subject \tPredicate\tObject\n" + PLAIN, "its header line is left out"),
    ],
)
def test_the_same_triples_however_written(tmp_path, text, note):
    graph = load(tmp_path, text)
    assert named(graph) == TRIPLES
    assert list(graph.entity_names) == ["Ann", "Bob", "Cid", "New York"]
    assert list(graph.relation_names) == ["knows", "lives in"]
    assert len(graph.notes) == (note is not None), graph.notes
    assert note is None or (graph.notes[0].startswith("train.txt: ") and graph.notes[0].endswith(note))


@pytest.mark.parametrize("inside", [*"\u2028\u2029\u0085\x0b\x0c\x1c\u00a0\ufeff", '"', "#", ","])
@pytest.mark.parametrize("separator", ["\t", " "])
def test_what_is_inside_a_name_stays(tmp_path, inside, separator):
    name = f"a{inside}b"
    graph = load(tmp_path, f"{name}{separator}r{separator}{name}c\n")
    assert named(graph) == [(name, "r", name + "c")]
    assert not graph.notes


@pytest.mark.parametrize("name", ['"Ann"', "'", '"', "#1", "%", "//"])
def test_quotes_and_comment_signs_are_data(tmp_path, name):
    assert named(load(tmp_path, f"{name}\tr\t{name}x\n")) == [(name, "r", name + "x")]


def test_blanks_separate_where_there_is_no_tab(tmp_path):
    graph = load(tmp_path, "a r  b\n  c r d  \ne r f\t\n")
    assert named(graph) == [("a", "r", "b"), ("c", "r", "d"), ("e", "r", "f")]
    assert graph.notes == ("train.txt: lines with white space around a name, which is left out: 1",)


@pytest.mark.parametrize(("suffix", "pack"), [(".tsv.gz", gzip.compress), (".del.xz", lzma.compress)])
def test_compressed(tmp_path, suffix, pack):
    assert named(load(tmp_path, pack(PLAIN.encode()), suffix)) == TRIPLES


def test_a_split_without_names_of_its_own_has_the_same_numbers(tmp_path):
    graph = load(tmp_path, PLAIN.replace("Ann", "Ann\u00a0"))
    assert graph.valid.tolist() == graph.test.tolist() == [graph.train[0].tolist()]


def test_names_that_look_alike_are_pointed_out(tmp_path):
    graph = load(tmp_path, "S\u00e3o\tr\tSa\u0303o\nNew York\tr\tNew\u00a0York\nBjo\u0308rn\tr\tx\n")
    assert graph.entities == 6 + 2, "with Ann and Bob"
    assert graph.notes == (
        "entities that differ only in how Unicode writes them, and stay apart: 2, "
        "such as 'New York' and 'New\\xa0York'",
    )


def test_one_entity_is_pointed_out(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("a\tr\ta\n")
    assert load_knowledge_graph(tmp_path).notes == ("all triples are of one entity: there is nothing to rank",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a\tb", r"has 2 fields; need head, relation and tail, .*: 'a\\tb'"),
        ("a\tb\tc\td", r"has 4 fields; need"),
        ("a\t\tc", r"has 3 fields, empty ones among them; need"),
        ("a\tb\t", r"has 2 fields; need"),
        ("\tb\tc", r"has 2 fields; need"),
        ("a\t\tb\tc", r"has 4 fields, empty ones among them; need"),
        ("a,b,c", r"has 1 field; need .* separated by tabs .*: 'a,b,c'"),
        ("a\u00a0b\u00a0c", r"has 1 field; need .*: 'a\\xa0b\\xa0c'"),
        ("New York is in", r"has 4 fields; need"),
    ],
)
def test_wrong_lines_are_named(tmp_path, line, message):
    with pytest.raises(DataError, match=r"train\.txt: line 6 " + message):
        load(tmp_path, f"{PLAIN}\n\n{line}\n{PLAIN}")


def test_files_without_triples(tmp_path):
    for nothing in ("", "\n\n", "head\trelation\ttail\n"):
        with pytest.raises(DataError, match=r"train\.txt: has no triples"):
            load(tmp_path, nothing)


def test_one_long_name_takes_its_own_room_only(tmp_path):
    length = 3_000_000
    text = "".join(f"e{step}\tr\te{step * 7 % 9999}\n" for step in range(20_000)) + f"e1\tr\t{'x' * length}\n"
    folder = folder_of(tmp_path, text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    graph = load_knowledge_graph(folder)
    grown_bytes = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert max(map(len, graph.entity_names)) == length
    assert grown_bytes < 40 * len(text), "an array of fixed width would take 20,000 times the name"


def test_alphabetical_order_of_what_is_used(tmp_path):
    graph = load(tmp_path, " b r a\t\t\nz\tr\ty\n")
    assert list(graph.entity_names) == sorted({"a", "b", "y", "z", "Ann", "Bob"})
    assert np.array_equal(np.unique(graph.everything()[:, [0, 2]]), np.arange(graph.entities))
