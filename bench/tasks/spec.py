"""The text of ``--generate``: parts of a dataclass of numbers."""

from dataclasses import fields
from typing import Any, TypeVar

from intentpm.bench.tasks.data_error import DataError

Spec = TypeVar("Spec")
OPTION = "--generate"


def parse_spec(kind: type[Spec], text: str) -> Spec:
    """Reads ``name=number, name=number ..`` as a ``kind``; parts left out keep their defaults. Raises DataError."""
    types: dict[str, Any] = {field.name: field.type for field in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in types:
            raise DataError(OPTION, f"unknown part {part!r}; there are {', '.join(types)}")
        if name in values:
            raise DataError(OPTION, f"{name} is given twice")
        values[name] = _whole(name, value) if types[name] is int else _number(name, value, "a number")
    return kind(**values)


def _number(name: str, value: str, kind: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise DataError(OPTION, f"{name}={value!r} is not {kind}") from None


def _whole(name: str, value: str) -> int:
    number = _number(name, value, "a whole number")
    if not number.is_integer():
        raise DataError(OPTION, f"{name}={value} is not a whole number")
    return int(number)
