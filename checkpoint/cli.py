"""``intentpm checkpoint``: looks at checkpoints and exports their tables."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from intentpm.checkpoint.export import SUFFIXES, export
from intentpm.checkpoint.reader import Checkpoint, open_checkpoint
from intentpm.checkpoint.series import chain
from intentpm.checkpoint.storage import Location, located
from intentpm.checkpoint.verify import verify


class Place(click.ParamType):  # type: ignore[type-arg]  # generic for type checkers alone
    """A click type: a folder of this machine, which is there or may not be, or a URL."""

    name = "folder"

    def __init__(self, exists: bool) -> None:
        self._folder = click.Path(path_type=Path, exists=exists, file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:
        if "://" in str(value):
            return located(value)
        folder: Path = self._folder.convert(value, param, ctx)
        return folder


_FOLDER = click.argument("folder", type=Place(exists=True))


@click.group()
def checkpoint() -> None:
    """Look at checkpoints. FOLDER, or a URL, is one, or holds some: then the newest is meant."""


@checkpoint.command()
@_FOLDER
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def inspect(folder: Location, as_json: bool) -> None:
    """Say what a checkpoint holds."""
    opened = open_checkpoint(folder, verify=False)
    described = _describe(opened)
    if as_json:
        click.echo(json.dumps(described))
        return
    click.echo(
        f"{opened.path}: checkpoint {opened.number} of job {opened.manifest.job}, written by {len(opened.ranks)} ranks"
    )
    for table in described["tables"]:
        click.echo(
            f"  {table['name']}: {table['num_keys']:,} rows of {tuple(table['row_shape'])} {table['dtype']}, "
            f"{table['rows_written']:,} of them written by this save; optimizer {table['optimizer'] or 'none'}"
        )
    click.echo(f"  {described['bytes']:,} bytes in {len(opened.parts)} files; needs {', '.join(described['needs'])}")


def _describe(opened: Checkpoint) -> dict[str, Any]:
    manifest = opened.manifest
    return {
        "path": str(opened.path),
        "job": manifest.job,
        "number": manifest.number,
        "ranks": len(opened.ranks),
        "seed": manifest.seed,
        "extra": opened.extra,
        "clocks": opened.clocks,
        "needs": [path.name for path in chain(opened.path)],
        "bytes": sum(part.entry.size_bytes for part in opened.parts),
        "tables": [
            {
                "name": table.name,
                "num_keys": table.num_keys,
                "row_shape": list(table.row_shape),
                "dtype": table.dtype,
                "optimizer": table.optimizer,
                "state": list(table.state),
                "rows_written": manifest.rows(table.name),
            }
            for table in manifest.tables
        ],
    }


@checkpoint.command("verify")
@_FOLDER
def verify_command(folder: Location) -> None:
    """Look at every byte; fails naming the file that is damaged or missing."""
    opened = verify(folder)
    click.echo(f"{opened.path}: every byte is as it was written")


@checkpoint.command("export")
@_FOLDER
@click.option("--out", type=Place(exists=False), required=True, help="Folder for the files.")
@click.option("--format", "form", type=click.Choice(list(SUFFIXES)), default="npy", show_default=True)
@click.option("--table", "tables", multiple=True, help="This table alone; may be given several times. [all]")
@click.option("--state", "with_state", is_flag=True, help="What the optimizer kept, too.")
def export_command(folder: Location, out: Location, form: str, tables: tuple[str, ...], with_state: bool) -> None:
    """Write each table into a file of its own, rows in the order of keys."""
    if not isinstance(out, Path):
        raise click.BadParameter(f"{out}: needs a folder of this machine", param_hint="--out")
    opened = open_checkpoint(folder)
    for table in dict.fromkeys(tables or opened.tables):
        path = out / f"{_file_name(table)}{SUFFIXES[form]}"
        export(opened, table, path, form, with_state)
        click.echo(str(path))


def _file_name(table: str) -> str:
    """A table's name, or where that may be no file's its percent-encoding: no two tables have the same."""
    return table if table.replace("_", "").replace("-", "").isalnum() else quote(table, safe="")
