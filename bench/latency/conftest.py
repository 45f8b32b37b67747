"""Rank 0 of the job that a launcher started runs the cases; the other ranks serve it and never become a test session.

Alone, the cases between ranks are skipped.
"""

import os
from collections.abc import Iterator
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # before numpy comes in

import pytest

import intentpm
from intentpm.bench.latency.job import MeasuringRank, ServingRank, close_link, join, open_link
from intentpm.bench.latency.local_tables import chosen_tables
from intentpm.bench.links import Link, usable_links
from intentpm.launch.launchers import detect_launcher

JOB = pytest.StashKey[MeasuringRank]()
NO_LINK = Link("none", "auto")
DEFAULTS = {
    # Rounds of 200 us: the clock and the loop around a call do not count then.
    "benchmark_min_time": ("0.000005", "0.0002"),
    "benchmark_max_time": ("1.0", "0.05"),
    "benchmark_min_rounds": (5, 15),
    "benchmark_sort": ("min", "median"),
    "benchmark_columns": (None, ["median", "iqr", "min", "max", "rounds", "iterations"]),
}
"""Options of pytest-benchmark: their defaults there and here."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-tables", action="store_true",
        help="local cases on tables of 100,000 and 10,000,000 rows of 1, 16, 64 and 256 floats [1,000,000 rows of 64]",
    )  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    for name, (theirs, ours) in DEFAULTS.items():
        if str(getattr(config.option, name)) == str(theirs):
            setattr(config.option, name, ours)
    # Where nothing was selected there is nothing to save: no error.
    config.addinivalue_line("filterwarnings", "default::pytest_benchmark.logger.PytestBenchmarkWarning")
    try:
        here = join()
    except intentpm.Error as error:
        raise pytest.UsageError(f"the job did not start: {error}") from None
    if isinstance(here, ServingRank):
        return here.serve()
    config.stash[JOB] = here
    config.add_cleanup(here.end)
    return None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "link" in metafunc.fixturenames:
        many = metafunc.config.stash.get(JOB, MeasuringRank(None)).size > 1
        links = usable_links() if many else [NO_LINK]
        metafunc.parametrize("link", links, ids=lambda link: link.name, indirect=True, scope="module")
    if "table_shape" in metafunc.fixturenames:
        shapes = chosen_tables(metafunc.config.getoption("--all-tables"))
        ids = [f"{num_keys}x{dim}" for num_keys, dim in shapes]
        metafunc.parametrize("table_shape", shapes, ids=ids, scope="module")


@pytest.fixture(scope="session")
def job(pytestconfig: pytest.Config) -> MeasuringRank:
    """Rank 0 of the job."""
    found = pytestconfig.stash.get(JOB, None)
    if found is None and detect_launcher(os.environ) != "alone":
        pytest.fail("several ranks need the folder's name on the command line: pytest bench/latency", pytrace=False)
    return found or MeasuringRank(None)


@pytest.fixture(scope="session")
def peers(job: MeasuringRank) -> None:
    """Skips what takes two ranks where there is one."""
    if job.size == 1:
        pytest.skip("needs a second rank: mpirun -n 2 python -m pytest bench/latency")


@pytest.fixture(scope="module")
def link(request: pytest.FixtureRequest, job: MeasuringRank) -> Iterator[Link]:
    """The job that is measured runs over this link."""
    job.everywhere(open_link, request.param)
    yield request.param
    job.everywhere(close_link)


@pytest.fixture(scope="module")
def no_link(job: MeasuringRank) -> Iterator[Any]:
    """The job that is measured, over whichever transport it takes: the cases do not use it."""
    job.everywhere(open_link, NO_LINK)
    yield
    job.everywhere(close_link)


@pytest.fixture
def budget_s(pytestconfig: pytest.Config) -> float:
    """For a case in which every call is a round. With ``--benchmark-max-time`` it grows and shrinks."""
    return 5 * float(pytestconfig.getoption("benchmark_max_time"))
