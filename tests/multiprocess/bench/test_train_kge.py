"""``intentpm train kge`` as a user runs it: quality on one and two ranks, results, errors."""

from functools import partial
from pathlib import Path

import pytest
from support.train_command import intentpm, results_of

pytestmark = pytest.mark.multiprocess

train = partial(results_of, "kge")
SPEC = "entities=500,relations=5,triples=12000,types=10"
OPTIONS = ["--dim", "32", "--epochs", "8", "--batch", "100", "--negatives", "128", "--reg", "0.02"]
FB15K237 = Path("../shared/data/fb15k237")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Results of the generated data on one rank."""
    return train(tmp_path_factory.mktemp("alone"), "--generate", SPEC, *OPTIONS)


def test_it_learns_the_generated_graph(alone):
    rows = alone["rows"]
    assert [row["epoch"] for row in rows] == list(range(9))
    assert rows[0]["loss"] is None
    assert rows[0]["mrr"] < 0.03, "untrained, the ranks of 500 entities are random"
    assert rows[-1]["mrr"] > 0.2, "the right type alone, 1 of 50 entities, gives 0.09"
    assert rows[-1]["loss"] < 0.5 * rows[1]["loss"]
    assert all(row["hits_1"] <= row["hits_3"] <= row["hits_10"] <= 1 for row in rows)
    assert all(row["local_share"] == 1 and row["bytes_sent"] == 0 for row in rows)


@pytest.mark.parametrize("sampling", ["preloc", "pool", "naive", "local"])
def test_the_same_seed_gives_the_same_run(tmp_path, sampling):
    options = ["--generate", SPEC, "--dim", 16, "--epochs", 1, "--sampling", sampling]
    first, again = (train(tmp_path, *options)["rows"] for _ in range(2))
    for name in ("loss", "mrr", "hits_10"):
        assert [row[name] for row in first] == [row[name] for row in again]


def test_two_ranks_are_as_good_as_one(alone, tmp_path):
    rows = train(tmp_path, "--generate", SPEC, *OPTIONS, "-n", 2, "--transport", "tcp")["rows"]
    assert rows[0]["mrr"] == pytest.approx(alone["rows"][0]["mrr"], rel=1e-9), "same data, same first rows"
    assert rows[-1]["mrr"] > alone["rows"][-1]["mrr"] - 0.02
    assert rows[-1]["bytes_sent"] > 0


@pytest.mark.parametrize("model", ["distmult", "rotate", "rescal"])
def test_other_models_learn_too(tmp_path, model):
    rows = train(tmp_path, "--generate", SPEC, *OPTIONS, "--model", model)["rows"]
    assert rows[-1]["mrr"] > 0.15, "the right type alone, 1 of 50 entities, gives 0.09"


@pytest.mark.parametrize("sampling", ["pool", "local"])
def test_other_schemes_learn_too(tmp_path, sampling):
    rows = train(tmp_path, "--generate", SPEC, *OPTIONS, "-n", 2, "--transport", "tcp", "--sampling", sampling)["rows"]
    assert rows[-1]["mrr"] > 0.17


def test_without_look_ahead_two_ranks_learn_the_same(alone, tmp_path):
    rows = train(tmp_path, "--generate", SPEC, *OPTIONS, "-n", 2, "--transport", "tcp", "--look-ahead", 0)["rows"]
    assert rows[-1]["mrr"] > alone["rows"][-1]["mrr"] - 0.02


@pytest.mark.slow
@pytest.mark.skipif(not FB15K237.exists(), reason="needs ../shared/data/fb15k237")
def test_fb15k237_quality(tmp_path):
    """One epoch: of all test triples 0.26; 0.327 after the 18 epochs of the defaults, which are larger."""
    options = ["--data", FB15K237.absolute(), "--dim", 128, "--epochs", 1]
    mrr = train(tmp_path, *options)["rows"][-1]["mrr"]
    assert mrr > 0.235


def test_not_every_epoch_is_ranked(tmp_path):
    options = ["--generate", SPEC, "--dim", 8, "--epochs", 3, "--evaluate-every", 2, "--out", "out"]
    rows = train(tmp_path, *options)["rows"]
    assert [row["epoch"] for row in rows if row["mrr"] is not None] == [0, 2, 3], "and the last"
    assert (tmp_path / "out/train-kge-n1.png").stat().st_size > 1_000


def test_what_a_user_sees(tmp_path):
    run = intentpm("train", "kge", "--generate", SPEC, "--dim", 8, "--epochs", 1, "--out", "out", cwd=tmp_path)
    lines = run.stdout.splitlines()
    assert lines[0] == "generated (10 types): 500 entities, 5 relations, 10,800 training triples; 1 rank"
    assert lines[1].split()[:4] == ["epoch", "train", "loss", "MRR"]
    assert [line.split()[0] for line in lines[2:4]] == ["0", "1"]
    for name in ("out/train-kge-n1.json", "out/train-kge-n1.png"):
        assert name in run.stdout
        assert (tmp_path / name).stat().st_size > 1_000
    drawn = intentpm("plot", "out/train-kge-n1.json", "--out", "again.png", cwd=tmp_path)
    assert drawn.stdout.strip() == "again.png"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --data FOLDER or --generate SPEC"),
        (["--data", "none", "-n", "3"], "none: there is no such folder"),
        (["--generate", "entities=x"], "entities='x' is not a whole number"),
        (["--generate", SPEC, "--dim", "7"], "7 is odd"),
        (["--generate", SPEC, "--sampling", "some"], "--sampling"),
        (["--generate", SPEC, "--dim", "8", "--epochs", "2", "--lr", "1e30"], "training diverged in epoch"),
    ],
)
def test_errors_are_messages(tmp_path, arguments, message):
    run = intentpm("train", "kge", *arguments, cwd=tmp_path, succeeds=False)
    assert message in run.stderr
    assert "Traceback" not in run.stderr
