"""Which UCX library this process uses: exactly one, from the wheel, the cluster, or a path.

``INTENTPM_UCX_LIBRARY`` chooses: ``auto`` (default), ``wheel``, ``system``, or the path of a ``libucp.so``.
``auto`` takes the library that is already in the process (MPI or ucxx may have loaded one), else the ``libucx``
wheel's, else the system's. A second libucp is never loaded: two copies would fight over memory hooks and signals.
"""

import ctypes
import importlib.util
import os
import pathlib

from intentpm.foundation.errors import ConfigError, TransportUnavailableError

SWITCH = "INTENTPM_UCX_LIBRARY"
OLDEST_VERSION = (1, 13)
"""The first UCX with every function and flag in use here."""
_SONAME = "libucp.so.0"
_INSTALL_HINT = "install one with: pip install 'intentpm[ucx]' (or the cluster's UCX package), or use transport='tcp'"


def loaded_library() -> pathlib.Path | None:
    """The libucp mapped into this process, if any."""
    for line in pathlib.Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and pathlib.Path(fields[5]).name.startswith("libucp.so"):
            return pathlib.Path(fields[5])
    return None


def wheel_folder() -> pathlib.Path | None:
    """Where the ``libucx`` wheel keeps its libraries, if it is installed (found without importing it)."""
    spec = importlib.util.find_spec("libucx")
    folders = spec.submodule_search_locations if spec else None
    folder = pathlib.Path(folders[0]).resolve() / "lib" if folders else None
    return folder if folder and (folder / _SONAME).exists() else None


def load_library() -> ctypes.CDLL:
    """Loads (or finds loaded) the one libucp of this process.

    Raises TransportUnavailableError (no library, or one that conflicts with the one already loaded) and ConfigError (a
    path in INTENTPM_UCX_LIBRARY that does not exist).
    """
    choice = os.environ.get(SWITCH, "") or "auto"
    present = loaded_library()
    if present is not None:
        _check_same(choice, present)
        return ctypes.CDLL(str(present), mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    if choice in ("auto", "wheel") and wheel_folder() is not None:
        return _load_wheel()
    if choice == "wheel":
        raise TransportUnavailableError(f"{SWITCH}=wheel, but the libucx wheel is not installed; {_INSTALL_HINT}")
    return _load_named(choice)


def _check_same(choice: str, present: pathlib.Path) -> None:
    # The wheel holds its library under several names, as copies: its folder tells.
    is_wheel = present.resolve().parent == wheel_folder()
    fits = {"auto": True, "wheel": is_wheel, "system": not is_wheel}
    if not (fits[choice] if choice in fits else _existing(choice) == present.resolve()):
        raise TransportUnavailableError(
            f"{SWITCH}={choice}, but {present} is already loaded in this process (by MPI, ucxx or an earlier "
            f"transport), and two UCX libraries in one process corrupt each other: use {SWITCH}=auto, or make the "
            "other load the same UCX"
        )


def _load_wheel() -> ctypes.CDLL:
    import libucx

    libucx.load_library()
    present = loaded_library()
    if present is None:
        raise TransportUnavailableError(f"the libucx wheel at {wheel_folder()} could not be loaded; {_INSTALL_HINT}")
    return ctypes.CDLL(str(present), mode=os.RTLD_NOW | os.RTLD_NOLOAD)


def _load_named(choice: str) -> ctypes.CDLL:
    name = _SONAME if choice in ("auto", "system") else str(_existing(choice))
    try:
        return ctypes.CDLL(name, mode=os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError as error:
        raise TransportUnavailableError(f"no UCX library ({error}); {_INSTALL_HINT}") from None


def _existing(path: str) -> pathlib.Path:
    if not pathlib.Path(path).is_file():
        raise ConfigError(f"{SWITCH}={path}: no such file; give auto, wheel, system, or the path of libucp.so.0")
    return pathlib.Path(path).resolve()


def settings_in_force() -> dict[str, str]:
    """The ``UCX_*`` variables of this process, which UCX itself reads."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith("UCX_")}


def describe_settings() -> str:
    """The same on one line, for messages."""
    return " ".join(f"{name}={value}" for name, value in settings_in_force().items()) or "no UCX_* variable set"
