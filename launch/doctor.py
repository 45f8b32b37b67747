"""``intentpm doctor``: what was found and tried on this machine, with a verdict per line and how to fix it."""

import json
import sys
from collections.abc import Callable, Iterable

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from intentpm.launch import doctor_machine as machine
from intentpm.launch import doctor_software as software
from intentpm.launch.doctor_gpu import check_gpu
from intentpm.launch.doctor_transports import check_transports
from intentpm.launch.findings import Finding

Check = Callable[[], Finding | list[Finding]]

CHECKS: dict[str, Check] = {
    "Python": machine.check_python,
    "intentpm": machine.check_package,
    "CPU cores": machine.check_cores,
    "Memory": machine.check_memory,
    "Memory overcommit": machine.check_overcommit,
    "Shared memory": machine.check_shared_memory,
    "Locked memory limit": machine.check_memlock,
    "Network": machine.check_interfaces,
    "Ports": machine.check_ports,
    "MPI": software.check_mpi,
    "Slurm": software.check_slurm,
    "torch": software.check_torch,
    "UCX": software.check_ucx,
    "GPU": check_gpu,
    "Launcher detected": software.check_launcher,
    "Transports": check_transports,
}
"""In the order of the report. A check returns findings and may take seconds; one that raises is itself a finding."""

_STYLES = {"ok": "green", "warn": "yellow", "missing": "bright_black", "broken": "bold red"}


def examine(checks: dict[str, Check]) -> Iterable[Finding]:
    """Runs ``checks`` one after the other and yields what they find."""
    for name, check in checks.items():
        try:
            found = check()
        except Exception as error:
            found = Finding(name, "warn", f"could not be checked: {type(error).__name__}: {error}")
        yield from found if isinstance(found, list) else [found]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Report what works on this machine, and how to fix the rest.

    Really tries what can be tried: opens ports, starts two ranks under mpirun, sends data over each transport. Exits
    with 1 if something is broken that intentpm cannot work without.
    """
    errors = Console(stderr=True)
    with errors.status("examining this machine ..."):
        findings = list(examine(CHECKS))
    if as_json:
        print(json.dumps([vars_of(finding) for finding in findings], indent=2))
    else:
        Console().print(table_of(findings))
    sys.exit(1 if any(finding.verdict == "broken" for finding in findings) else 0)


def table_of(findings: Iterable[Finding]) -> Table:
    table = Table(title="intentpm doctor", title_justify="left", show_lines=False)
    table.add_column("what", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("found", overflow="fold")
    table.add_column("to do", overflow="fold")
    for finding in findings:
        style = _STYLES[finding.verdict]
        # Not as markup: what was found may contain brackets.
        table.add_row(finding.name, Text(finding.verdict, style), Text(finding.found), Text(finding.fix))
    return table


def vars_of(finding: Finding) -> dict[str, object]:
    return {
        "name": finding.name,
        "verdict": finding.verdict,
        "found": finding.found,
        "fix": finding.fix,
        "facts": dict(finding.facts),
    }
