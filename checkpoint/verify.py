"""Whether a checkpoint is whole and right, to the last byte."""

import os

from intentpm.checkpoint.reader import Checkpoint, open_checkpoint


def verify(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a checkpoint and looks at every byte of it and of those it needs: checksums, keys, numbers of rows.

    Raises CheckpointError naming the file at fault. Returns the checkpoint, opened.
    """
    opened = open_checkpoint(path, verify=True)
    for table in opened.tables:
        opened[table].check()
    return opened
