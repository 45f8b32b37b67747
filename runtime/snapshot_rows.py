"""The rows of a cut that a rank has to write, in pieces, as its file takes them."""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from intentpm.checkpoint.disk_thread import DiskThread
from intentpm.runtime._native.rank_snapshot import RankSnapshot
from intentpm.runtime._native.store import Table
from intentpm.runtime.rank_file import Keys, Rows, as_rows, rows_at_once, stored_row_bytes

Versions = npt.NDArray[np.uint32]


class SnapshotRows:
    """A ``rank_file.RowSource`` for the thread that writes; when nobody waits for that any more, it gets none."""

    def __init__(
        self,
        snapshot: RankSnapshot,
        seen: Mapping[str, Versions] | None,
        only_changed: bool,
        piece_bytes: int,
        disk: DiskThread,
    ) -> None:
        """seen: is brought up to date with what is written. only_changed: and says what need not be."""
        self._snapshot, self._seen, self._only_changed = snapshot, seen, only_changed
        self._piece_bytes, self._disk = piece_bytes, disk

    def count(self, table: Table) -> int:
        with self._disk.shared():
            if self._only_changed and self._seen is not None:
                self._snapshot.skip_unchanged(table, self._seen[table.name])
            return self._snapshot.rows(table)

    def pieces(self, table: Table) -> Iterator[tuple[Keys, Rows]]:
        most = rows_at_once(table, self._piece_bytes)
        keys, memory = np.empty(most, np.int32), np.empty(most * stored_row_bytes(table), np.uint8)
        seen = None if self._seen is None else self._seen[table.name]
        while taken := self._take(table, keys, memory, seen):
            yield keys[:taken], as_rows(table, memory, taken)

    def _take(self, table: Table, keys: Keys, memory: npt.NDArray[np.uint8], seen: Versions | None) -> int:
        with self._disk.shared():
            return self._snapshot.take(table, keys, memory, seen)
