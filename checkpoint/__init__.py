"""``intentpm.checkpoint``: checkpoints on disk. Reading them needs NumPy alone, and no ranks.

    with intentpm.checkpoint.open("runs/7") as saved:      # a checkpoint, or a folder of them: the newest
        saved.tables                                       # names
        items = saved["items"]
        items.rows([3, 17])                                # weights of two keys, read from memory-mapped files
        items.state("sum", [3, 17])                        # what the optimizer kept of them

``ParameterManager.save`` writes them (``runtime/saving.py``), ``ParameterManager.load`` takes them into a job. What a
checkpoint is made of stands in docs/checkpoints.md; each part of it is a file here:

    tensor_file    one rank's rows: a safetensors file, written in one pass
    long_file      how its bytes get to the disk
    disk_thread    who does that, so that a disk that hangs is told of
    manifest       what belongs together, with checksums: the file that makes a folder a checkpoint
    storage        where they lie: in a folder, or at a URL that fsspec reaches
    series         checkpoints that follow each other in one folder: their numbers, the newest, those no longer needed
    reader         rows by key from all files of a checkpoint
    verify         looks at every byte
"""

from intentpm.checkpoint.reader import Checkpoint, TableReader, open_checkpoint
from intentpm.checkpoint.series import latest
from intentpm.checkpoint.verify import verify
from intentpm.foundation.errors import CheckpointError

open = open_checkpoint

__all__ = ["Checkpoint", "CheckpointError", "TableReader", "latest", "open", "verify"]
