"""Which device is a rank's: by what its launcher says of its place on the host."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

import intentpm
from intentpm.runtime.devices import Devices, local_rank

PLACES = [
    ("alone", {}, 0, 1, 0),
    ("local", {}, 3, 4, 3),
    ("local", {"LOCAL_RANK": "1"}, 3, 4, 1),
    ("torchrun", {"LOCAL_RANK": "2"}, 6, 4, 2),
    ("mpi", {"OMPI_COMM_WORLD_LOCAL_RANK": "1"}, 4, 2, 1),
    ("mpi", {"MPI_LOCALRANKID": "3"}, 7, 4, 3),
    ("mpi", {"MV2_COMM_WORLD_LOCAL_RANK": "0"}, 7, 4, 0),
    ("slurm", {"SLURM_LOCALID": "2"}, 5, 3, 2),
    ("slurm", {"OMPI_COMM_WORLD_LOCAL_RANK": "9", "SLURM_LOCALID": ""}, 5, 3, 2),
]


@pytest.mark.parametrize(("launcher", "environment", "rank", "local_ranks", "expected"), PLACES)
def test_the_place_on_the_host(
    launcher: str, environment: dict[str, str], rank: int, local_ranks: int, expected: int
) -> None:
    world = SimpleNamespace(launcher=launcher, rank=rank, local_ranks=local_ranks)
    assert local_rank(world, environment) == expected


def test_a_device_is_opened_once() -> None:
    devices = Devices("emulated:3", SimpleNamespace(launcher="alone", rank=1, local_ranks=1))
    assert devices.open() is devices.open("emulated:3")
    assert devices.open("emulated:4") is not devices.open()
    assert devices.open().name == f"emulated (seed {3 * 4096 + 1})"
    with pytest.raises(intentpm.ConfigError, match="choose cuda"):
        devices.open("tpu")


def test_the_package_needs_no_cuda_and_no_cupy() -> None:
    """Nothing of it is loaded by a program that keeps rows on the host, nor by one that uses an emulated device."""
    program = (
        "import sys, intentpm\n"
        "with intentpm.init(device='emulated') as pm:\n"
        "    for storage in ('host', 'gpu'):\n"
        "        pm.worker().push(pm.create_table(storage, 4, storage=storage), [1], [1.0])\n"
        "loaded = [name for name in sys.modules if name.partition('.')[0] in ('cupy', 'cupyx', 'torch', 'cuda')]\n"
        "maps = open('/proc/self/maps').read()\n"
        "print(loaded, 'libcuda' in maps, 'libcudart' in maps)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[] False False"
