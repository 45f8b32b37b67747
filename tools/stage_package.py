"""Makes STAGE/intentpm: a package of links to the source folders, so that Cython and mypy see the installed names."""

import sys
from pathlib import Path

FOLDERS = ("foundation", "transports", "gpu", "runtime", "launch", "testing", "bench")


def main(source: Path, stage: Path) -> None:
    package = stage / "intentpm"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.pxd").touch()
    links = {package / name: source / name for name in FOLDERS}
    links[package / "__init__.py"] = source / "runtime" / "_package_init.py"
    links[package / "optim.py"] = source / "runtime" / "_package_optim.py"
    for link, target in links.items():
        if link.is_symlink() and link.readlink() == target:
            continue
        link.unlink(missing_ok=True)
        link.symlink_to(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
