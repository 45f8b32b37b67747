"""A rank with an emulated device, and a program that works on it."""

from collections.abc import Iterator

import pytest
from support.device_caller import Caller

import intentpm


@pytest.fixture(params=[0, 1, 2])
def pm(request: pytest.FixtureRequest) -> Iterator[intentpm.ParameterManager]:
    with intentpm.init(device=f"emulated:{request.param}") as pm:
        yield pm


@pytest.fixture
def caller(pm: intentpm.ParameterManager) -> Iterator[Caller]:
    with Caller(pm.worker(device="emulated")).at_work() as caller:
        yield caller
