"""Files of a checkpoint that are damaged: none is read, and the last good one is found."""

import random
from pathlib import Path
from typing import Any

import pytest
from support.checkpointed import assert_same, create, everything, read_alone, save, save_chain

import intentpm
import intentpm.checkpoint
from intentpm.checkpoint.manifest import MANIFEST
from intentpm.foundation.errors import CheckpointError
from intentpm.testing import run_ranks


def damage(path: Path, draw: random.Random) -> str:
    """Flips a bit or cuts the file short; says what was done."""
    data = bytearray(path.read_bytes())
    if draw.random() < 0.3:
        left = draw.randrange(len(data))
        path.write_bytes(data[:left])
        return f"{path.name} cut to {left} of {len(data)} bytes"
    at = draw.randrange(len(data))
    data[at] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    return f"{path.name} byte {at} of {len(data)}"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_no_damage_goes_unnoticed(tmp_path: Path) -> None:
    """Of 1,000 truncations and flipped bits, in any file of a checkpoint and of those it needs: none is loaded."""
    newest, draw = save_chain(tmp_path)[-1], random.Random(1)
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    assert len(files) == 9
    with intentpm.init() as pm:
        tables = create(pm)
        for _ in range(1000):
            victim = draw.choice(files)
            whole = victim.read_bytes()
            done = damage(victim, draw)
            for read in (intentpm.checkpoint.open, pm.load):
                with pytest.raises(CheckpointError) as error:
                    read(newest)
                assert str(victim) in str(error.value), done
            victim.write_bytes(whole)
        assert not any(rows.any() for rows in everything(pm, tables).values())
        pm.load(newest)
        assert_same(everything(pm, tables), read_alone(newest))


def test_ranks_refuse_a_damaged_file_together(tmp_path: Path) -> None:
    path, _ = run_ranks(3, save(tmp_path))[0]
    victim = path / "rank-0001.safetensors"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)

    def load(pm: Any) -> tuple[str, bool]:
        tables = create(pm)
        with pytest.raises(CheckpointError) as error:
            pm.load(path)
        pm.barrier()
        return str(error.value), all(not rows.any() for rows in everything(pm, tables).values())

    for told, untouched in run_ranks(2, load):
        assert f"{victim}: its tensor " in told
        assert untouched


def test_the_last_good_one_is_found(tmp_path: Path) -> None:
    with intentpm.init() as pm:
        create(pm, ["plain"])
        first, second = pm.save(tmp_path), pm.save(tmp_path)
        (second / MANIFEST).write_bytes(b"{}")
        assert intentpm.latest(tmp_path) == first
        (tmp_path / "000003").mkdir()  # a save that was killed
        assert intentpm.latest(tmp_path) == first
        assert pm.save(tmp_path).name == "000004"
        assert not (tmp_path / "000003").exists()
    assert intentpm.latest(tmp_path / "nothing") is None
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        intentpm.checkpoint.open(tmp_path / "nothing")
