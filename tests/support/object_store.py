"""A store of objects as fsspec shows them, in this process' memory: like S3 it has names, and no folders."""

from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

PROTOCOL = "objects"


class ObjectStore(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """``ls`` of what no name begins with raises FileNotFoundError, and what is made empty is not there."""

    protocol = PROTOCOL
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.removeprefix(f"{PROTOCOL}://"))
        return stripped

    def mkdir(self, path: str, create_parents: bool = True, **options: Any) -> None:
        pass

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        pass


def register() -> None:
    fsspec.register_implementation(PROTOCOL, ObjectStore, clobber=True)
