"""Results files and the plots drawn from them."""

import json
import math
from dataclasses import dataclass

import click
import numpy as np
import pytest

from intentpm.bench.plots import draw
from intentpm.bench.results import describe_environment, write_results


@dataclass
class Epoch:
    number: int
    seconds: float


def mf_rows(epochs=3):
    return [
        {"epoch": n, "seconds": 0.1 * bool(n), "valid_rmse": 1 - 0.1 * n, "test_rmse": 1.1 - 0.1 * n}
        for n in range(epochs + 1)
    ]


def test_write_results_is_plain_json(tmp_path):
    rows = [Epoch(1, 0.5), {"x": np.float32(2), "bad": math.nan, "a": np.arange(2)}]
    document = write_results(tmp_path / "deep" / "r.json", "bench x", {"path": tmp_path}, rows, note=(1, 2))
    assert json.loads((tmp_path / "deep" / "r.json").read_text()) == document
    assert document["rows"][0] == {"number": 1, "seconds": 0.5}
    assert document["rows"][1] == {"x": 2.0, "bad": None, "a": [0, 1]}
    assert document["note"] == [1, 2]
    assert set(document["environment"]) >= {"commit", "host", "cpu", "cores", "python", "versions", "time"}


def test_environment_names_what_is_installed():
    environment = describe_environment()
    assert environment["versions"]["numpy"] == np.__version__
    assert environment["cores"] >= 1
    assert environment["cpu"]


@pytest.mark.parametrize("rows", [mf_rows(), mf_rows(0), [row | {"valid_rmse": None} for row in mf_rows()]])
def test_draw_makes_a_picture(tmp_path, rows):
    write_results(
        tmp_path / "r.json", "train mf", {"ranks": 2, "data": "x", "users": 3, "items": 4, "ratings": 5}, rows
    )
    draw(tmp_path / "r.json", tmp_path / "pictures" / "r.png")
    assert (tmp_path / "pictures" / "r.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a readable results file"),
        ("[]", "nothing to draw for None"),
        ('{"bench": "other"}', "nothing to draw for 'other'; there are plots of train"),
        ('{"bench": "train mf", "rows": []}', "incomplete"),
        ('{"bench": "train mf", "rows": [], "config": {"ranks": 1, "data": "x"}}', "incomplete"),
        ('{"bench": "train mf", "rows": [{}], "config": {}}', "incomplete"),
    ],
)
def test_draw_refuses_other_files(tmp_path, content, message):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(click.ClickException, match=message):
        draw(tmp_path / "r.json", tmp_path / "r.png")
