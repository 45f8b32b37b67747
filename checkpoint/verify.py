"""Whether a checkpoint is whole and right, to the last byte."""

import os

import numpy as np

from intentpm.checkpoint.reader import Checkpoint, open_checkpoint, tensor_name
from intentpm.foundation.errors import CheckpointError


def verify(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a checkpoint and looks at every byte of it and of those it needs: checksums, keys, numbers of rows.

    Raises CheckpointError naming the file at fault. Returns the checkpoint, opened.
    """
    opened = open_checkpoint(path, verify=True)
    for table in opened.manifest.tables:
        for part in opened.parts:
            rows = part.entry.rows.get(table.name)
            if rows is None:
                continue
            keys = part.tensors.tensor(tensor_name(table.name, "keys"))
            distinct = np.unique(keys)
            if not len(keys) == len(distinct) == rows or (
                rows and not 0 <= distinct[0] <= distinct[-1] < table.num_keys
            ):
                raise CheckpointError(f"{part.tensors.path}: its keys of table {table.name!r} are not those of a table")
        next(opened[table.name].stretches(1))
    return opened
