"""Makes STAGE/intentpm: a package of links to the source folders, so that Cython and mypy see the installed names."""

import sys
from pathlib import Path

FOLDERS = (
    "foundation",
    "checkpoint",
    "transports",
    "gpu",
    "runtime",
    "launch",
    "bindings",
    "testing",
    "pytorch",
    "bench",
)
INSTALLED_AS = {"pytorch": "torch", "bindings": "adapm"}
"""Folders with another name than the package: a folder torch would hide the library from who runs in the repository."""


def main(source: Path, stage: Path) -> None:
    package = stage / "intentpm"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.pxd").touch()
    links = {package / INSTALLED_AS.get(name, name): source / name for name in FOLDERS}
    links[package / "__init__.py"] = source / "runtime" / "_package_init.py"
    links[package / "optim.py"] = source / "runtime" / "_package_optim.py"
    for link, target in links.items():
        if link.is_symlink() and link.readlink() == target:
            continue
        link.unlink(missing_ok=True)
        link.symlink_to(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
