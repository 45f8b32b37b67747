"""What ``import intentpm`` gives: names, without waiting for numpy, and what ``help`` says of them."""

import inspect
import pydoc
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import intentpm
import intentpm.testing

LATER = ("Future", "KeyReport", "ParameterManager", "Sample", "Sampling", "Table", "Worker")
PUBLIC = {
    **{f"intentpm.{name}": getattr(intentpm, name) for name in intentpm.__all__ if name != "__version__"},
    **{f"intentpm.testing.{name}": getattr(intentpm.testing, name) for name in intentpm.testing.__all__},
}


def has_first_sentence(thing: Any) -> bool:
    paragraph = (inspect.getdoc(thing) or "").partition("\n\n")[0]
    return len(paragraph.split()) > 2 and any(mark in paragraph for mark in ".:;")


def undescribed(owner: type) -> Iterator[str]:
    """Public methods and properties without a docstring, attributes that the docstring of their class does not name."""
    for name in dir(owner):
        home = next((base for base in owner.__mro__ if name in vars(base)), object)
        member = vars(home).get(name)
        if name.startswith("_") or not home.__module__.startswith("intentpm"):
            continue
        if inspect.isgetsetdescriptor(member) or inspect.ismemberdescriptor(member):
            if not has_first_sentence(member) and not re.search(rf"\b{name}\b(``|:|,)", owner.__doc__ or ""):
                yield name
        elif (inspect.isroutine(member) or isinstance(member, property)) and not has_first_sentence(member):
            yield name


def test_the_names_are_there() -> None:
    assert set(LATER) < set(intentpm.__all__)
    assert dir(intentpm) == sorted(intentpm.__all__)
    assert all(getattr(intentpm, name) is not None for name in intentpm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Tables'"):
        _ = intentpm.Tables
    with pytest.raises(ImportError, match="Tables"):
        exec("from intentpm import Tables")


def test_what_calls_return_are_the_public_classes() -> None:
    with intentpm.init() as pm:
        table, worker = pm.create_table("items", 10), pm.worker()
        assert type(pm) is intentpm.ParameterManager
        assert type(table) is intentpm.Table
        assert type(worker) is intentpm.Worker
        assert type(worker.pull_async(table, [1])) is intentpm.Future
        assert type(pm.create_sampling(table)) is intentpm.Sampling
        assert type(worker.prepare_sample(table, 1, 0)) is intentpm.Sample
        assert type(pm.explain(table, 1)) is intentpm.KeyReport


def test_importing_waits_for_nothing_heavy() -> None:
    loaded = (
        "import intentpm, sys; print([name for name in ('numpy', 'intentpm.runtime.manager') if name in sys.modules])"
    )
    for first, expected in ("", "[]"), ("import intentpm; intentpm.Table;", "['numpy']"):
        printed = subprocess.run([sys.executable, "-c", first + loaded], capture_output=True, text=True, timeout=60)
        assert printed.stdout.strip() == expected, printed.stderr


@pytest.mark.parametrize("name", PUBLIC)
def test_help_says_what_it_is(name: str) -> None:
    assert has_first_sentence(PUBLIC[name])


@pytest.mark.parametrize("name", [name for name, thing in PUBLIC.items() if inspect.isclass(thing)])
def test_help_says_what_its_members_are(name: str) -> None:
    assert list(undescribed(PUBLIC[name])) == []


def test_help_shows_what_a_method_takes() -> None:
    for method in (
        intentpm.Worker.pull,
        intentpm.Worker.intent,
        intentpm.Future.result,
        intentpm.ParameterManager.barrier,
    ):
        shown = pydoc.plaintext.document(method)
        assert shown.startswith(f"{method.__name__}(self")
        assert "cdef" not in shown
        assert shown.count("self") == 1, "Cython's own signature comes on top"
