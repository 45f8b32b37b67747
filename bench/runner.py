"""Runs a function on every rank of a new local job and collects what each returned.

Run as a program (``python -m intentpm.bench.runner MODULE FOLDER``) it is one of these ranks.
"""

import importlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from intentpm.bench.hosts import Host, run_on_hosts

ENTRY = "run_rank"
"""The function a scenario module has: ``run_rank(pm, arguments, folder) -> dict`` with values that JSON can hold."""


def run_scenario(
    module: str,
    ranks: int,
    arguments: Mapping[str, Any],
    *,
    transport: str,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    hosts: Sequence[Host] = (),
) -> list[dict[str, Any]]:
    """Starts ``ranks`` ranks, calls ``module``'s ``run_rank`` on each, and returns their results in rank order.

    Parameters:
        module: importable name of the scenario.
        arguments: passed to every rank; values that JSON can hold. ``arguments["init"]``: options of intentpm.init.
        timeout_s: after this many seconds the ranks are killed.
        env: added to the environment of the ranks.
        hosts: one rank runs on each of them, in place of ``ranks`` on this machine.
    Raises:
        click.ClickException: a rank failed or the time ran out; the ranks' own output says more.
    """
    from intentpm import clean_environment
    from intentpm.launch.local import run_local

    with tempfile.TemporaryDirectory(prefix="intentpm-bench-") as name:
        folder = Path(name)
        (folder / "arguments.json").write_text(json.dumps(dict(arguments)))
        argv = [sys.executable, "-m", "intentpm.bench.runner", module, str(folder)]
        if hosts:
            of_ranks = {**clean_environment(), **(env or {}), "INTENTPM_TRANSPORT": transport}
            code = run_on_hosts(hosts, argv, of_ranks, timeout_s)
        else:
            code = run_local(ranks, argv, transport=transport, env=env, timeout_s=timeout_s)
        if code != 0:
            why = f"did not finish in {timeout_s:.0f} s" if code == 124 else f"ended with exit code {code}"
            raise click.ClickException(f"{module} on {ranks} ranks over {transport} {why}")
        return [json.loads(_result_path(folder, rank).read_text()) for rank in range(ranks)]


def usable_transports() -> list[str]:
    """The transports between processes that work on this machine."""
    from intentpm.transports.registry import available

    return [name for name, found in available().items() if found.usable and name not in ("loopback", "sim")]


def _result_path(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.json"


def _run_rank(module: str, folder: Path) -> None:
    import intentpm

    entry = getattr(importlib.import_module(module), ENTRY)
    arguments = json.loads((folder / "arguments.json").read_text())
    with intentpm.init(**arguments.get("init", {})) as pm:
        result = entry(pm, arguments, folder)
        _result_path(folder, pm.rank).write_text(json.dumps(result))


if __name__ == "__main__":
    _run_rank(sys.argv[1], Path(sys.argv[2]))
