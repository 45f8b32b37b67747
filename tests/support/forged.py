"""Checkpoints whose files are not what they should be, though every checksum is right: as by a faulty writer."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from intentpm.checkpoint.manifest import MANIFEST, read_manifest
from intentpm.checkpoint.tensor_file import TensorFile, TensorFileWriter, TensorSpec

Tensors = dict[str, np.ndarray[Any, Any]]


def tensors_of_file(path: Path) -> Tensors:
    entry = next(entry for entry in read_manifest(path.parent).files if entry.name == path.name)
    file = TensorFile(path, entry.size_bytes, entry.checksums[""])
    return {name: file.tensor(name).copy() for name in entry.checksums if name}


def forge(path: Path, change: Callable[[Tensors], Any]) -> None:
    """Changes what is in a rank's file, and writes its checksums and numbers of rows anew."""
    tensors, manifest = tensors_of_file(path), read_manifest(path.parent)
    change(tensors)
    path.unlink()
    with TensorFileWriter(path, {name: TensorSpec(rows.dtype, rows.shape) for name, rows in tensors.items()}) as file:
        for name, rows in tensors.items():
            file.append(name, rows)
        file.finish()
    files = []
    for entry in manifest.files:
        if entry.name == path.name:
            rows = {table: len(tensors.get(f"{table}.keys", ())) for table in entry.rows}
            entry = dataclasses.replace(entry, size_bytes=file.size_bytes, rows=rows, checksums=file.checksums)
        files.append(entry)
    (path.parent / MANIFEST).write_bytes(dataclasses.replace(manifest, files=files).encode())
