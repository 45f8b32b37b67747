"""A checkpoint's tables as files that other programs read: one file each."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from intentpm.checkpoint.reader import Checkpoint, TableReader
from intentpm.checkpoint.tensor_file import Array, TensorFileWriter, TensorSpec
from intentpm.foundation.errors import CheckpointError

Columns = Mapping[str, Array]


def export(opened: Checkpoint, table: str, path: Path, form: str, with_state: bool = False) -> None:
    """Writes a table, rows in the order of keys. form: "npy" (weights alone), "safetensors" or "torch".

    with_state: what the optimizer kept, too; not in a .npy.
    Raises CheckpointError, OSError.
    """
    if form not in WRITERS:
        raise CheckpointError(f"format {form!r}: choose one of {', '.join(WRITERS)}")
    if form == "npy" and with_state:
        raise CheckpointError("a .npy holds one array: export the state with --format safetensors or torch")
    reader = opened[table]
    columns = {"weights": reader.rows()}
    if with_state:
        columns |= {name: reader.state(name) for name in reader.state_names}
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[form](path, columns, reader)


def _write_npy(path: Path, columns: Columns, reader: TableReader) -> None:
    with path.open("wb") as file:
        np.save(file, columns["weights"])


def _write_safetensors(path: Path, columns: Columns, reader: TableReader) -> None:
    path.unlink(missing_ok=True)
    specs = {name: TensorSpec(rows.dtype, rows.shape) for name, rows in columns.items()}
    with TensorFileWriter(path, specs) as file:
        for name, rows in columns.items():
            file.append(name, rows)
        file.finish()


def _write_torch(path: Path, columns: Columns, reader: TableReader) -> None:
    try:
        import torch
    except ImportError:
        raise CheckpointError("a torch file needs torch: pip install 'intentpm[torch]'") from None
    torch.save({name: _tensor(torch, rows) for name, rows in columns.items()}, path)


def _tensor(torch: Any, rows: Array) -> Any:
    if rows.dtype.name == "bfloat16":
        return torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16)
    if rows.dtype == np.uint32:
        return torch.from_numpy(rows.astype(np.int64))
    return torch.from_numpy(rows)


WRITERS: Mapping[str, Callable[[Path, Columns, TableReader], None]] = {
    "npy": _write_npy,
    "safetensors": _write_safetensors,
    "torch": _write_torch,
}
SUFFIXES = {"npy": ".npy", "safetensors": ".safetensors", "torch": ".pt"}
