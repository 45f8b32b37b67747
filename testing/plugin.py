"""The pytest plugin: the fixture ``run_ranks``. pytest finds it by itself (entry point ``intentpm``)."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def run_ranks() -> Callable[..., list[Any]]:
    """``intentpm.testing.run_ranks``: runs a function on several ranks in this process."""
    from intentpm.testing.ranks import run_ranks as run

    return run
