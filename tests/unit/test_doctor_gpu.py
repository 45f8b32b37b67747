"""What ``intentpm doctor`` makes of what a GPU machine says, one that is well and one that is not."""

from pathlib import Path

import pytest

pytest.importorskip("click", reason="click is not installed: pip install 'intentpm[cli]'")

from intentpm.launch import doctor_gpu

MEMORY = """
==============NVSMI LOG==============
GPU 00000000:1B:00.0
    FB Memory Usage
        Total                             : 81559 MiB
        Reserved                          : 551 MiB
        Used                              : 0 MiB
    BAR1 Memory Usage
        Total                             : {bar1}
        Used                              : 1 MiB
    Conf Compute Protected Memory Usage
        Total                             : 0 MiB
"""


def test_bar1_beside_the_memory() -> None:
    whole = doctor_gpu.read_bar1(MEMORY.format(bar1="131072 MiB"))
    assert (whole.verdict, whole.facts) == ("ok", {"memory_mib": 81559, "bar1_mib": 131072})
    small = doctor_gpu.read_bar1(MEMORY.format(bar1="256 MiB"))
    assert (small.verdict, small.found) == ("warn", "256 MiB of 81559 MiB")
    assert small.fix
    assert doctor_gpu.read_bar1(MEMORY.format(bar1="N/A")).verdict == "warn"
    assert doctor_gpu.read_bar1("").verdict == "warn"


def test_peers_and_dma_buf_are_told_apart() -> None:
    peers, dma = doctor_gpu.read_driver_answers("dma-buf 0 1\npeer 0 1 1\ndma-buf 1 1\npeer 1 0 1\n")
    assert (peers.verdict, dma.verdict) == ("ok", "ok")
    assert peers.facts["pairs"] == {"0-1": True, "1-0": True}
    peers, dma = doctor_gpu.read_driver_answers("dma-buf 0 0\npeer 0 1 0\ndma-buf 1 1\npeer 1 0 1\n")
    assert (peers.verdict, peers.found, dma.verdict) == ("warn", "not between 0-1", "warn")
    peers, dma = doctor_gpu.read_driver_answers("dma-buf 0 1\n")
    assert (peers.verdict, dma.verdict) == ("ok", "ok")


def test_peermem(tmp_path: Path) -> None:
    assert doctor_gpu._check_peermem(str(tmp_path)).verdict == "missing"
    (tmp_path / "nvidia_peermem").mkdir()
    assert doctor_gpu._check_peermem(str(tmp_path)).verdict == "ok"


def test_every_libucp_is_told() -> None:
    one = "libucp /a/libucp.so.0\nlibucp /a/libucp.so.0\n"
    assert doctor_gpu.read_maps(one).found == "/a/libucp.so.0"
    two = doctor_gpu.read_maps(one + "libucp /usr/lib/libucp.so.0.0.0\n")
    assert (two.verdict, two.found) == ("warn", "2: /a/libucp.so.0, /usr/lib/libucp.so.0.0.0")
    assert doctor_gpu.read_maps("not loaded: none\n").verdict == "missing"


def test_this_machine() -> None:
    findings = doctor_gpu.check_gpu()
    names = [finding.name for finding in findings]
    assert names[0] == "GPU"
    assert names[-1] == "libucp in a rank"
    assert len(set(names)) == len(names)
