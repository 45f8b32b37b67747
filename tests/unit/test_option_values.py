"""Options of ``init`` and their variables: each value that cannot be is named with its option."""

from typing import Any

import numpy as np
import pytest

import intentpm
from intentpm.runtime.config import Config, read_config
from intentpm.runtime.option_values import parse_bytes

REFUSED: list[tuple[str, Any]] = [
    ("spin_us", float("nan")),
    ("spin_us", "5"),
    ("spin_us", True),
    ("seed", -1),
    ("seed", 1.0),
    ("seed", True),
    ("seed", "7"),
    ("peer_timeout", "10"),
    ("peer_timeout", True),
    ("peer_timeout", [10]),
    ("start_timeout", "soon"),
    ("sync_interval", np.bool_(True)),
    ("sync_threshold", float("nan")),
    ("sync_threshold", "0"),
    ("memory_budget", 1e9),
    ("memory_budget", True),
    ("memory_budget", "8 parsecs"),
    ("memory_budget", "-1GB"),
    ("memory_budget", ""),
    ("memory_budget", "0 MB"),
    ("memory_budget", 2**63),
    ("port", 80.0),
    ("port", True),
    ("port", "80"),
    ("host", b"localhost"),
    ("host", ""),
    ("host", "local\0host"),
    ("secret", b"x" * 16),
    ("secret", "\ud800" * 16),
    ("transport", b"tcp"),
    ("transport", 1),
    ("management", None.__class__),
    ("timing", ["adaptive"]),
]


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=ascii)
def test_a_value_that_cannot_be_is_named_with_its_option(name: str, value: Any) -> None:
    with pytest.raises(intentpm.ConfigError, match=f"{name}="):
        intentpm.init(**{name: value})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SPIN_US", "nan"),
        ("SEED", "-1"),
        ("SEED", "1.5"),
        ("MEMORY_BUDGET", "lots"),
        ("MEMORY_BUDGET", "1e9"),
        ("PORT", "http"),
        ("SYNC_THRESHOLD", "nan"),
    ],
)
def test_a_variable_that_cannot_be_is_named(name: str, text: str) -> None:
    with pytest.raises(intentpm.ConfigError, match=f"(?i){name}"):
        read_config({}, {f"INTENTPM_{name}": text})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000", 1000),
        ("1000B", 1000),
        ("8GB", 8 * 10**9),
        ("8 gb", 8 * 10**9),
        ("7.5GiB", 15 * 2**29),
        (" 64 MiB ", 2**26),
        ("2k", 2000),
        ("1TiB", 2**40),
    ],
)
def test_a_budget_may_have_a_unit(text: str, size: int) -> None:
    assert parse_bytes(text) == size
    assert read_config({}, {"INTENTPM_MEMORY_BUDGET": text}).memory_budget == size
    assert Config(memory_budget=text).memory_budget == size  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    config = Config(seed=np.int64(3), peer_timeout=np.float32(2), port=np.uint16(80), spin_us=np.int32(5))  # type: ignore[arg-type]
    assert (config.seed, config.peer_timeout, config.port, config.spin_us) == (3, 2.0, 80, 5.0)
    assert all(type(value) in (int, float) for value in (config.seed, config.peer_timeout, config.port, config.spin_us))
