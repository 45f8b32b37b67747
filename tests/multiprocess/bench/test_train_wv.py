"""``intentpm train wv`` as a user runs it: quality on one and two ranks, results, errors."""

from functools import partial
from math import log
from pathlib import Path

import pytest
from support.train_command import intentpm, results_of

pytestmark = pytest.mark.multiprocess

train = partial(results_of, "wv")
SPEC = "words=1000,tokens=60000,topics=10"
OPTIONS = ["--generate", SPEC, "--dim", 16, "--epochs", 3]
WIKI_TEXT = Path("../shared/data/wiki_text")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Results of the generated text on one rank."""
    return train(tmp_path_factory.mktemp("alone"), *OPTIONS)


def test_it_learns_the_topics(alone):
    rows = alone["rows"]
    assert [row["epoch"] for row in rows] == list(range(4))
    assert rows[0]["loss"] is None
    assert rows[0]["topics"] < 0.2
    assert rows[-1]["topics"] > 0.7
    assert rows[-1]["loss"] < rows[1]["loss"] < 6 * log(2), "that of scores of 0, of a word and five negatives"
    assert all(row["local_share"] == 1 and row["bytes_sent"] == 0 for row in rows)


def test_the_same_seed_gives_the_same_run(alone, tmp_path):
    rows = train(tmp_path, *OPTIONS)["rows"]
    for name in ("loss", "topics"):
        assert [row[name] for row in rows] == [row[name] for row in alone["rows"]]


@pytest.mark.parametrize("look_ahead", [0, 16])
def test_two_ranks_are_as_good_as_one(alone, tmp_path, look_ahead):
    rows = train(tmp_path, *OPTIONS, "--look-ahead", look_ahead, "-n", 2, "--transport", "tcp")["rows"]
    assert rows[0]["topics"] == pytest.approx(alone["rows"][0]["topics"], rel=1e-9), "same text, same first rows"
    assert rows[-1]["topics"] > alone["rows"][-1]["topics"] - 0.05
    assert rows[-1]["bytes_sent"] > 0


@pytest.mark.slow
@pytest.mark.skipif(not WIKI_TEXT.exists(), reason="needs ../shared/data/wiki_text")
def test_wikipedia_quality(tmp_path):
    """After one epoch, in which the learning rate falls to 0; the five of the defaults reach 0.62."""
    last = train(tmp_path, "--data", WIKI_TEXT.absolute(), "--epochs", 1)["rows"][-1]
    assert last["ws353"] > 0.36
    assert last["simlex"] > 0.2


def test_what_a_user_sees(tmp_path):
    run = intentpm("train", "wv", "--generate", SPEC, "--dim", 4, "--epochs", 1, "--out", "out", cwd=tmp_path)
    lines = run.stdout.splitlines()
    assert lines[0] == "generated (10 topics): 1,000 words, 60,000 tokens; 1 rank"
    assert lines[1].split()[:4] == ["epoch", "train", "loss", "topics"]
    for name in ("out/train-wv-n1.json", "out/train-wv-n1.png"):
        assert name in run.stdout
        assert (tmp_path / name).stat().st_size > 1_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --data FOLDER or --generate SPEC"),
        (["--data", "none", "-n", "3"], "none: there is no such file or folder"),
        (["--generate", "words=x"], "words='x' is not a whole number"),
        (["--generate", SPEC, "--dim", "4", "--epochs", "2", "--lr", "1e30"], "training diverged in epoch"),
    ],
)
def test_errors_are_messages(tmp_path, arguments, message):
    run = intentpm("train", "wv", *arguments, cwd=tmp_path, succeeds=False)
    assert message in run.stderr
    assert "Traceback" not in run.stderr
