"""Which transports there are, and what is said about those that cannot be used."""

import sys
from types import ModuleType

import pytest

from intentpm.foundation.errors import ConfigError, TransportUnavailableError
from intentpm.transports import registry


class _BrokenModule(ModuleType):
    """A module whose class cannot be had, as when a shared library under it does not load."""

    def __getattr__(self, name: str) -> object:
        raise OSError("libucp.so.0: cannot open shared object file")


@pytest.fixture
def broken_ucx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "intentpm.transports.ucx", _BrokenModule("intentpm.transports.ucx"))


@pytest.fixture
def absent_ucx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "intentpm.transports.ucx", None)


@pytest.fixture
def present_ucx(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("intentpm.transports.ucx")
    module.UcxTransport = object
    monkeypatch.setitem(sys.modules, "intentpm.transports.ucx", module)


def test_tcp_and_loopback_are_always_there() -> None:
    found = registry.available()
    assert list(found) == ["ucx", "tcp", "loopback"]
    assert found["tcp"].usable
    assert found["loopback"].usable
    assert found["tcp"].reason == ""


@pytest.mark.usefixtures("broken_ucx")
def test_a_broken_library_is_a_reason_not_a_crash() -> None:
    assert "libucp.so.0" in registry.available()["ucx"].reason
    assert registry.choose("auto") == "tcp"
    with pytest.raises(TransportUnavailableError, match=r"transport ucx.*libucp\.so\.0"):
        registry.choose("ucx")


@pytest.mark.usefixtures("absent_ucx")
def test_an_absent_module_is_a_reason() -> None:
    assert not registry.available()["ucx"].usable
    assert registry.choose("auto") == "tcp"


@pytest.mark.usefixtures("present_ucx")
def test_auto_prefers_ucx() -> None:
    assert registry.choose("auto") == "ucx"
    assert registry.choose("tcp") == "tcp"


def test_auto_with_nothing_usable_gives_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ucx", "tcp"):
        monkeypatch.setitem(sys.modules, f"intentpm.transports.{name}", None)
    with pytest.raises(TransportUnavailableError, match=r"transport ucx .*; transport tcp "):
        registry.choose("auto")


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"'mpi'.*auto, ucx, tcp, loopback"):
        registry.load("mpi")
