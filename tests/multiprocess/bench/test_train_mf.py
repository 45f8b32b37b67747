"""``intentpm train mf`` as a user runs it: quality on one and three ranks, results, errors."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.train_command import intentpm, results_of

from intentpm.bench.tasks.ratings import GeneratorSpec, generate_ratings

pytestmark = pytest.mark.multiprocess

train = partial(results_of, "mf")
SPEC = "users=2000,items=600,ratings=60000,rank=4"
OPTIONS = ["--dim", "8", "--lr", "0.08", "--reg", "0.01", "--epochs", "12", "--batch", "500"]
MOVIELENS = Path("../shared/data/movielens_small/ratings.npz")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Results of the generated data on one rank."""
    return train(tmp_path_factory.mktemp("alone"), "--generate", SPEC, *OPTIONS)


def test_it_learns_the_generated_matrix(alone):
    rows = alone["rows"]
    assert [row["epoch"] for row in rows] == list(range(13))
    assert rows[0]["loss"] is None
    assert rows[0]["test_rmse"] > 0.9
    assert rows[-1]["test_rmse"] < 0.45, "the noise is 0.1; the rest is what few ratings per user leave"
    assert rows[-1]["loss"] < rows[1]["loss"]
    assert all(row["local_share"] == 1 and row["bytes_sent"] == 0 for row in rows)


def test_the_same_seed_gives_the_same_run(alone, tmp_path):
    again = train(tmp_path, "--generate", SPEC, *OPTIONS)
    for name in ("loss", "valid_rmse", "test_rmse"):
        assert [row[name] for row in alone["rows"]] == [row[name] for row in again["rows"]]


def test_three_ranks_are_as_good_as_one(alone, tmp_path):
    rows = train(tmp_path, "--generate", SPEC, *OPTIONS, "-n", 3, "--transport", "tcp")["rows"]
    assert rows[0]["test_rmse"] == pytest.approx(alone["rows"][0]["test_rmse"], rel=1e-9), "same data, same first rows"
    assert rows[-1]["test_rmse"] <= alone["rows"][-1]["test_rmse"] + 0.01
    assert rows[-1]["bytes_sent"] > 0
    assert 0.1 < rows[-1]["local_share"] <= 1


def test_without_look_ahead_nothing_changes_on_one_rank(alone, tmp_path):
    rows = train(tmp_path, "--generate", SPEC, *OPTIONS, "--look-ahead", 0)["rows"]
    assert rows[-1]["test_rmse"] == alone["rows"][-1]["test_rmse"]


@pytest.mark.skipif(not MOVIELENS.exists(), reason="needs ../shared/data/movielens_small")
def test_movielens_quality(tmp_path):
    path = MOVIELENS.absolute()
    options = ["--data", path, "--transport", "tcp"]
    one, three = (train(tmp_path, *options, "-n", n)["rows"][-1]["test_rmse"] for n in (1, 3))
    assert one < 0.87, "biases alone reach 0.877"
    assert three == pytest.approx(one, abs=0.005)


def test_what_a_user_sees(tmp_path):
    run = intentpm("train", "mf", "--generate", SPEC, "--epochs", 2, "-n", 2, "--out", "out", cwd=tmp_path)
    lines = run.stdout.splitlines()
    assert lines[0] == "generated (rank 4, noise 0.1): 2,000 users, 600 items, 60,000 ratings; 2 ranks"
    assert lines[1].split()[:3] == ["epoch", "train", "loss"]
    assert lines[1].endswith("local %")
    assert [line.split()[0] for line in lines[2:5]] == ["0", "1", "2"]
    assert "\x1b" not in run.stdout
    for name in ("out/train-mf-n2.json", "out/train-mf-n2.png"):
        assert name in run.stdout
        assert (tmp_path / name).stat().st_size > 1_000
    drawn = intentpm("plot", "out/train-mf-n2.json", "--out", "again.png", cwd=tmp_path)
    assert drawn.stdout.strip() == "again.png"
    assert (tmp_path / "again.png").exists()


def test_ratings_from_files(tmp_path):
    import scipy.io
    import scipy.sparse

    made = generate_ratings(GeneratorSpec(users=300, items=200, ratings=5_000, rank=3))
    np.savez(tmp_path / "r.npz", user=made.user, item=made.item, rating=made.rating)
    scipy.io.mmwrite(tmp_path / "r.mtx", scipy.sparse.coo_matrix((made.rating, (made.user, made.item)), (300, 200)))
    for name in ("r.npz", "r.mtx"):
        document = train(tmp_path, "--data", name, "--epochs", 1)
        assert document["config"]["ratings"] == 5_000
        assert document["config"]["data"].endswith(f"/{name}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --data FILE or --generate SPEC"),
        (["--data", "none.npz", "-n", "3"], "none.npz: there is no such file"),
        (["--generate", "users=x"], "users='x' is not a whole number"),
        (["--generate", SPEC, "--lr", "50", "--epochs", "2"], "training diverged in epoch"),
        (["--generate", SPEC, "--transport", "pigeon", "-n", "2"], "pigeon"),
        (["--generate", SPEC, "--batch", "0"], "--batch"),
        (["--generate", SPEC, "--look-ahead", "-1"], "'-1' is neither a number of batches nor auto"),
    ],
)
def test_errors_are_messages(tmp_path, arguments, message):
    run = intentpm("train", "mf", *arguments, cwd=tmp_path, succeeds=False)
    assert message in run.stderr
    assert "Traceback" not in run.stderr
