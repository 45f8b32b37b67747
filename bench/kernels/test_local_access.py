"""The accesses of ``intentpm bench local`` under pytest-benchmark: ``pytest bench/kernels``."""

from collections.abc import Iterator
from typing import Any

import pytest

import intentpm
from intentpm.bench.kernels.local_access import LocalAccess, LocalAccessOptions

OPTIONS = LocalAccessOptions(num_keys=200_000)
OPERATIONS = ("pull", "push", "set")


@pytest.fixture(scope="module")
def access() -> Iterator[LocalAccess]:
    with intentpm.init() as pm:
        yield LocalAccess(pm, OPTIONS)


@pytest.mark.parametrize("batch_size", OPTIONS.batch_sizes)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_local_access(benchmark: Any, access: LocalAccess, operation: str, batch_size: int, position: int) -> None:
    case = access.cases(batch_size)[OPERATIONS.index(operation)]
    if position >= len(case.calls):
        pytest.skip(f"{operation} is compared with {len(case.calls) - 1} others")
    name, call = list(case.calls.items())[position]
    benchmark.group = f"{operation} {batch_size}"
    benchmark.name = name
    benchmark(call)
