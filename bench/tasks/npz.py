"""Arrays from npz files."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.tasks.data_error import DataError


def read_npz(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """The arrays by name, without those of ``optional`` that the file has not. Raises DataError."""
    if not zipfile.is_zipfile(path):
        raise DataError(path, "is not a readable npz file (not an archive, or cut short)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = sorted(set(needed) - set(archive.files))
            if missing:
                raise DataError(path, f"has no array {missing[0]!r}; found {', '.join(sorted(archive.files))}")
            return {name: archive[name] for name in (*needed, *optional) if name in archive.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(path, f"is not a readable npz file ({error})") from error
