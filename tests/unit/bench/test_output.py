"""Output that is tried before the work, and kept when it cannot be written after it."""

import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager

import click
import pytest
from click.testing import CliRunner

from intentpm.bench import plots
from intentpm.bench.cli import plot
from intentpm.bench.output import OutFolder, OutputError, check_file, check_folder
from intentpm.bench.results import write_results
from intentpm.bench.tasks.progress import EPOCH, EpochLines, make_console
from intentpm.bench.tasks.saving import save

ROWS = [{"epoch": n, "seconds": 0.1, "valid_rmse": 1.0 - n / 10, "test_rmse": 1.1 - n / 10} for n in range(3)]
CONFIG = {"ranks": 2, "data": "x", "users": 3, "items": 4, "ratings": 5}


@contextmanager
def small_files():
    """The system refuses what a file would have beyond 64 KB, as a full disk does.

    Not around a whole test: pytest's report may be such a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def taken(tmp_path):
    """A path where no folder can be, not even for root."""
    (tmp_path / "taken").write_bytes(b"a file")
    return tmp_path / "taken" / "out"


def test_a_folder_that_can_be_written_is_made_and_left_empty(tmp_path):
    check_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_that_cannot_be_made(taken):
    with pytest.raises(OutputError, match=r"taken/out: no results can be written there \(.*\); choose another --out"):
        check_folder(taken)


def test_a_full_disk_is_found_before(tmp_path):
    with small_files(), pytest.raises(OutputError, match=r"File too large; 256 KB are tried"):
        check_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way(tmp_path):
    check_file(tmp_path / "r.json")
    (tmp_path / "r.json").write_text("old")
    check_file(tmp_path / "r.json")
    assert (tmp_path / "r.json").read_text() == "old"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="there is a folder of this name"):
        check_file(tmp_path / "folder")


def test_an_option_that_names_a_folder_is_tried_first(tmp_path, taken):
    ran = []

    @click.command()
    @click.option("--out", type=OutFolder())
    def command(out):
        ran.append(out)

    assert CliRunner().invoke(command, ["--out", str(tmp_path / "new")]).exit_code == 0
    assert ran == [tmp_path / "new"]
    refused = CliRunner().invoke(command, ["--out", str(taken)])
    assert refused.exit_code == 1
    assert "no results can be written there" in refused.output
    assert ran == [tmp_path / "new"]


def test_results_are_kept_elsewhere(taken):
    with pytest.raises(OutputError) as caught:
        write_results(taken / "r.json", "bench x", {}, ROWS)
    assert json.loads(caught.value.kept.read_text())["rows"] == ROWS
    assert str(caught.value.kept) in caught.value.message
    caught.value.kept.unlink()
    caught.value.kept.parent.rmdir()


def test_results_of_a_training_are_kept_elsewhere(taken, capsys):
    saved = save("mf", taken / "r.json", CONFIG, ROWS, 1.0)
    assert json.loads(saved.results.read_text())["rows"] == ROWS
    assert str(saved.results) in saved.problem.message
    assert dict(saved.lines()) == {"results": str(saved.results), "plot": "-"}
    saved.results.unlink()
    saved.results.parent.rmdir()


def test_results_that_no_file_can_hold_are_printed(tmp_path, capsys):
    rows = ROWS * 2_000
    with small_files():
        saved = save("mf", tmp_path / "r.json", CONFIG, rows, 1.0)
    assert saved.only_in_memory
    saved.print_json()
    assert json.loads(capsys.readouterr().out)["rows"] == rows
    assert list(tmp_path.iterdir()) == []


def test_a_plot_that_fails_is_a_warning(tmp_path, capsys):
    (tmp_path / "r.png").mkdir()
    saved = save("mf", tmp_path / "r.json", CONFIG, ROWS, 1.0)
    assert (saved.results, saved.picture, saved.problem) == (tmp_path / "r.json", None, None)
    assert json.loads((tmp_path / "r.json").read_text())["rows"] == ROWS
    warned = capsys.readouterr().err
    assert warned.startswith("warning: no plot (")
    assert "intentpm plot" in warned


def test_a_missing_matplotlib_is_a_warning(tmp_path):
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path\n"
        "from intentpm.bench.tasks.saving import save\n"
        f"saved = save('mf', Path({str(tmp_path / 'r.json')!r}), {CONFIG}, {ROWS}, 1.0)\n"
        "print(saved.results, saved.picture, saved.problem)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.split()[1:] == ["None", "None"]
    assert run.stderr.startswith("warning: no plot (")
    assert (tmp_path / "r.json").exists()


def test_a_picture_is_not_half_overwritten(tmp_path):
    picture = tmp_path / "r.rgba"  # raw pixels: larger than the limit
    picture.write_bytes(b"old")
    document = write_results(tmp_path / "r.json", "train mf", CONFIG, ROWS)
    with small_files(), pytest.raises(OSError, match="File too large"):
        plots.save(document, picture)
    assert picture.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "r.rgba"]


def test_plot_says_what_it_cannot_write(tmp_path, taken):
    results = tmp_path / "r.json"
    write_results(results, "train mf", CONFIG, ROWS)
    for out, message in (
        (taken / "r.png", "cannot be written ("),
        (tmp_path / "r.docx", "no plot is written as .docx"),
    ):
        run = CliRunner().invoke(plot, [str(results), "--out", str(out)])
        assert run.exit_code == 1
        assert f"{out}: {message}" in run.output
    for out, start in (("r.svg", b"<?xml"), ("no_suffix", b"\x89PNG")):
        assert CliRunner().invoke(plot, [str(results), "--out", str(tmp_path / out)]).exit_code == 0
        assert (tmp_path / out).read_bytes().startswith(start)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_plot_reads_what_an_editor_saved_anew(tmp_path, encoding):
    results = tmp_path / "r.json"
    write_results(results, "train mf", CONFIG, ROWS)
    results.write_bytes(results.read_text().encode(encoding))
    plots.draw(results, tmp_path / "r.png")
    assert (tmp_path / "r.png").exists()


def test_training_goes_on_when_its_lines_cannot_be_printed(monkeypatch, capsys):
    class Row:
        epoch = 1

    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        console = make_console(quiet=False, plain=True)
        assert len(list(EpochLines(console, [EPOCH], 3).follow([Row(), Row(), Row()]))) == 3
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # what it still holds must go somewhere
    warned = capsys.readouterr().err
    assert warned.count("warning: standard output cannot be written") == 1
