"""``intentpm bench device``: rows in the memory of a GPU, beside PyTorch's."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click


@click.command()
@click.option("--device", default="cuda", show_default=True, help="cuda, cuda:NUMBER or emulated (a rehearsal).")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/device"), show_default=True,
              help="Writes OUT.json and OUT.md.")  # fmt: skip
@click.option("--fact", multiple=True, metavar="NAME=VALUE", help="To be noted on the page.")
def device(device: str, out: Path, fact: tuple[str, ...]) -> None:
    """Measure gathers, additions and optimiser steps on rows in device memory."""
    from intentpm.bench.scenarios.device_baselines import measure_torch
    from intentpm.bench.scenarios.device_page import document, page
    from intentpm.bench.scenarios.device_rows import SMALL, Sizes, measure
    from intentpm.bench.scenarios.device_worker import measure_worker
    from intentpm.runtime.devices import check_device, open_device

    check_device(device)
    emulated = device.startswith("emulated")
    sizes = SMALL if emulated else Sizes()
    opened = open_device(device, 0)
    facts: dict[str, object] = {
        "rows": sizes.rows, "numbers a row": f"{sizes.items} float32", "look-ups": sizes.lookups,
        "Python": platform.python_version(), "intentpm": version("intentpm"),
    }  # fmt: skip
    facts |= {package: found for package in ("torch", "cupy-cuda13x", "cupy-cuda12x") if (found := _version(package))}
    facts |= dict(each.partition("=")[::2] for each in fact)
    measured = [*measure(opened, sizes), *measure_worker(device, sizes), *measure_torch(sizes, not emulated)]
    result = document(opened.name, measured, facts)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    out.with_suffix(".md").write_text(page(result))
    click.echo(page(result))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
