"""``intentpm train ctr`` and ``gnn`` as a user runs them: quality on one and two ranks, results, errors."""

from pathlib import Path

import pytest
from support.train_command import intentpm, results_of

pytest.importorskip("torch")
pytestmark = pytest.mark.multiprocess

CLICKS = "rows=6000,held_out=3000,fields=4,keys=400,numbers=3,informative=20,strength=1"
CTR = ["--generate", CLICKS, "--hidden", 32, "--dim", 4, "--batch", 64, "--lr", 0.005, "--epochs", 3, "--dropout", 0]
GRAPH = "nodes=1500,edges=9000,features=100"
GNN = ["--generate", GRAPH, "--dim", 16, "--epochs", 4, "--batch", 64]
DATA = Path("../shared/data")
TWO = ["-n", 2, "--transport", "tcp", "--batch", 32]
"""Of examples per rank: as many steps as one rank with twice as many makes."""


@pytest.fixture(scope="module")
def clicks(tmp_path_factory):
    """Rows of the generated examples on one rank."""
    return results_of("ctr", tmp_path_factory.mktemp("alone"), *CTR)["rows"]


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """Rows of the generated graph on one rank."""
    return results_of("gnn", tmp_path_factory.mktemp("alone"), *GNN)["rows"]


def test_clicks_are_learned(clicks):
    assert [row["epoch"] for row in clicks] == list(range(4))
    assert abs(clicks[0]["test_auc"] - 0.5) < 0.1
    assert 0.75 < clicks[-1]["reachable_auc"] < 1
    assert clicks[-1]["test_auc"] > clicks[-1]["reachable_auc"] - 0.04
    assert clicks[-1]["loss"] < clicks[1]["loss"]
    assert all(row["bytes_sent"] == 0 for row in clicks)


@pytest.mark.parametrize("dense", ["allreduce", "keys"])
def test_clicks_on_two_ranks_are_learned_as_well(clicks, tmp_path, dense):
    last = results_of("ctr", tmp_path, *CTR, *TWO, "--dense", dense)["rows"][-1]
    assert last["reachable_auc"] == pytest.approx(clicks[-1]["reachable_auc"], abs=1e-9), "the same test rows"
    assert last["test_auc"] > clicks[-1]["test_auc"] - 0.03
    assert last["bytes_sent"] > 0


def test_the_graph_is_learned(graph):
    assert graph[0]["test_accuracy"] < 0.4, "of 5 classes"
    assert graph[-1]["test_accuracy"] > 0.8
    assert graph[-1]["loss"] < graph[1]["loss"]


@pytest.mark.parametrize(
    ("options", "below"),
    [(["--dense", "keys"], 0.2), (["--model", "sage"], 0.06), (["--partition", "hash"], 0.06)],
    ids=["dense keys", "sage", "hash"],
)
def test_the_graph_on_two_ranks_is_learned_as_well(graph, tmp_path, options, below):
    """Dense keys are trained without waiting: on a busy machine steps are made with weights as old as it is busy."""
    last = results_of("gnn", tmp_path, *GNN, *TWO, *options)["rows"][-1]
    assert last["test_accuracy"] > graph[-1]["test_accuracy"] - below
    assert last["bytes_sent"] > 0


@pytest.mark.parametrize("inputs", ["features", "embeddings"])
def test_either_input_does(tmp_path, inputs):
    last = results_of("gnn", tmp_path, *GNN, "--inputs", inputs, "--embedding-lr", 0.01, "--epochs", 6)["rows"][-1]
    assert last["test_accuracy"] > 0.6


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")
def test_cora_quality(tmp_path):
    rows = results_of("gnn", tmp_path, "--data", DATA.absolute() / "cora")["rows"]
    assert max(rows, key=lambda row: row["valid_accuracy"])["test_accuracy"] > 0.79


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")
def test_adult_quality(tmp_path):
    """With a smaller perceptron than the default's, which reaches 0.908 after five epochs."""
    options = ["--data", DATA.absolute() / "adult", "--hidden", 128, "--dropout", 0.2, "--epochs", 4]
    assert results_of("ctr", tmp_path, *options)["rows"][-1]["test_auc"] > 0.904


@pytest.mark.parametrize(("task", "options"), [("ctr", CTR), ("gnn", GNN)])
def test_what_a_user_sees(tmp_path, task, options):
    run = intentpm("train", task, *options, "--epochs", 1, "--out", "out", cwd=tmp_path)
    assert "; 1 rank\n" in run.stdout
    for name in (f"out/train-{task}-n1.json", f"out/train-{task}-n1.png"):
        assert name in run.stdout
        assert (tmp_path / name).stat().st_size > 1_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ctr"], "give either --data FOLDER or --generate SPEC"),
        (["ctr", "--data", "none", "-n", "2"], "none: there is no such file"),
        (["gnn", "--data", "none", "-n", "2"], "none: there is no such file"),
        (["ctr", *CTR, "--lr", "1e20", "--epochs", "2"], "training diverged in epoch"),
    ],
)
def test_errors_are_messages(tmp_path, arguments, message):
    run = intentpm("train", *arguments, cwd=tmp_path, succeeds=False)
    assert message in run.stderr
    assert "Traceback" not in run.stderr
