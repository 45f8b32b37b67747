"""Reading and generating knowledge graphs."""

import numpy as np
import pytest

from intentpm.bench.tasks.data_error import DataError
from intentpm.bench.tasks.knowledge_graph import GraphSpec, generate_knowledge_graph, load_knowledge_graph

SPLITS = {"train": [(0, 0, 1), (2, 1, 0)], "valid": [(1, 0, 2)], "test": [(3, 1, 1)]}


def write_npz(folder, **changes):
    np.savez(folder / "triples.npz", **{name: np.array(rows) for name, rows in (SPLITS | changes).items()})


def test_npz(tmp_path):
    write_npz(tmp_path)
    graph = load_knowledge_graph(tmp_path)
    assert (graph.entities, graph.relations, graph.source) == (4, 2, tmp_path.name)
    assert graph.train.dtype == np.int32
    assert graph.everything().tolist() == [[0, 0, 1], [2, 1, 0], [1, 0, 2], [3, 1, 1]]


@pytest.mark.parametrize(("suffix", "separator"), [(".txt", "\t"), (".del", " "), (".tsv", "\t")])
def test_text(tmp_path, suffix, separator):
    for split, rows in SPLITS.items():
        lines = [separator.join((f"e{head}", f"r{relation}", f"e{tail}")) for head, relation, tail in rows]
        (tmp_path / f"{split}{suffix}").write_text("\n".join(lines) + "\n\n")
    graph = load_knowledge_graph(tmp_path)
    # In alphabetical order the numbers come back.
    assert (graph.entities, graph.relations) == (4, 2)
    assert graph.train.tolist() == [[0, 0, 1], [2, 1, 0]]
    assert graph.test.tolist() == [[3, 1, 1]]


def test_names_with_blanks(tmp_path):
    for split in SPLITS:
        (tmp_path / f"{split}.txt").write_text("New York\tis in\tthe United States\n")
    assert load_knowledge_graph(tmp_path).entities == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"valid": np.empty((0, 3), int)}, "'valid' has no triples"),
        ({"test": [(0, 0, -1)]}, "'test' has the id -1; need ids from 0"),
        ({"test": np.array([(0, 0, 2**63)], np.uint64)}, "'test' has the id 9223372036854775808"),
        ({"test": [(0, 0)]}, "need whole numbers"),
        ({"test": [(0.5, 0, 1)]}, "need whole numbers"),
    ],
)
def test_unusable_arrays(tmp_path, changes, message):
    write_npz(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        load_knowledge_graph(tmp_path)


@pytest.mark.parametrize("far", [40, 16_753_810, 2**62])
def test_ids_with_gaps_are_numbered_without(tmp_path, far):
    write_npz(tmp_path, train=[(0, 5, far), (2, 9, 0)], valid=[(far, 5, 2)], test=[(7, 9, 7)])
    graph = load_knowledge_graph(tmp_path)
    assert (graph.entities, graph.relations) == (4, 2)
    assert graph.train.dtype == np.int32
    read_back = np.array(graph.entity_names)[graph.everything()[:, [0, 2]]]
    assert read_back.tolist() == [[0, far], [2, 0], [far, 2], [7, 7]]
    assert np.array(graph.relation_names)[graph.everything()[:, 1]].tolist() == [5, 9, 5, 9]
    assert graph.notes == (
        f"4 entities have ids from 0 to {far:,}: numbered without gaps",
        "2 relations have ids from 5 to 9: numbered without gaps",
    )


def test_ids_can_be_kept(tmp_path):
    write_npz(tmp_path, train=[(0, 5, 40), (2, 9, 0)])
    graph = load_knowledge_graph(tmp_path, keep_ids=True)
    assert (graph.entities, graph.relations, graph.notes) == (41, 10, ())
    assert graph.train.tolist() == [[0, 5, 40], [2, 9, 0]]
    write_npz(tmp_path, train=[(0, 0, 2**31 - 1)])
    with pytest.raises(DataError, match=r"'train' has the id 2147483647; need 0 to 2\^31 - 2 where ids are kept"):
        load_knowledge_graph(tmp_path, keep_ids=True)


def test_unusable_folders(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load_knowledge_graph(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is no folder"):
        load_knowledge_graph(tmp_path / "file")
    with pytest.raises(DataError, match=r"neither triples.npz nor train.txt"):
        load_knowledge_graph(tmp_path)
    (tmp_path / "train.txt").write_text("a\tb\tc\na\tb\n")
    with pytest.raises(DataError, match="line 2 has 2 fields"):
        load_knowledge_graph(tmp_path)
    (tmp_path / "triples.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DataError, match="not a readable npz"):
        load_knowledge_graph(tmp_path)
    np.savez(tmp_path / "triples.npz", train=np.zeros((1, 3), int))
    with pytest.raises(DataError, match="no array 'test'"):
        load_knowledge_graph(tmp_path)


def test_generated_triples_follow_their_types():
    spec = GraphSpec.parse("entities=500, relations=3, triples=4000, types=5")
    graph = generate_knowledge_graph(spec, seed=1)
    everything = graph.everything()
    assert len(everything) == 4000 == len(np.unique(everything, axis=0))
    assert (len(graph.valid), len(graph.test)) == (200, 200)
    assert everything[:, [0, 2]].max() < 500
    for relation in range(3):
        for kind in range(5):
            of = everything[(everything[:, 1] == relation) & (everything[:, 0] % 5 == kind)]
            assert len(np.unique(of[:, 2] % 5)) == 1, "a relation leads from a type to one type"
    assert (everything == generate_knowledge_graph(spec, seed=1).everything()).all()
    assert (everything != generate_knowledge_graph(spec, seed=2).everything()).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes=3", "unknown part"),
        ("triples=x", "not a whole number"),
        ("zipf=x", "not a number"),
        ("triples=1.5", "triples=1.5 is not a whole number"),
        ("types=3,types=4", "types is given twice"),
        ("zipf=-1", "finite number >= 0"),
        ("entities=0", "need 1 to"),
        ("entities=10,types=11", "more than the 10 entities"),
        ("triples=99", "at least 100"),
    ],
)
def test_unusable_specs(text, message):
    with pytest.raises(DataError, match=message):
        GraphSpec.parse(text)


def test_a_spec_as_people_write_it():
    expected = GraphSpec(entities=1_000, triples=20_000, zipf=0.5)
    assert GraphSpec.parse(" entities = 1_000 ,\ttriples=2e4, zipf\u00a0= .5,") == expected


def test_more_triples_than_there_are():
    with pytest.raises(DataError, match="hardly more than"):
        generate_knowledge_graph(GraphSpec(entities=10, relations=1, triples=1000, types=2))
