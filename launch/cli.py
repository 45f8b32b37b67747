"""The ``intentpm`` command. Subcommands load on first use, so that ``intentpm run`` starts fast."""

import sys

_NEEDS = "the intentpm command needs its extra: pip install 'intentpm[cli]'"


def main() -> None:
    """Entry point of the ``intentpm`` script and of ``python -m intentpm``."""
    try:
        import click
    except ImportError:
        sys.exit(f"{_NEEDS} (click is not installed)")
    del click
    from intentpm.launch.commands import intentpm

    intentpm(prog_name="intentpm")
