"""``FeatureStore``: PyTorch Geometric's interface over tables, so that its loaders read features from them."""

import threading
from typing import Any

import numpy as np
import torch

from intentpm.foundation.errors import DtypeError, ShapeError
from intentpm.torch.table_module import ROWS_A_CALL, table_from
from intentpm.torch.tensors import as_array, as_tensor

try:
    from torch_geometric.data import FeatureStore as Interface
    from torch_geometric.data import TensorAttr
except ImportError as missing:
    raise ImportError("intentpm.torch.FeatureStore needs torch_geometric: pip install torch_geometric") from missing


class FeatureStore(Interface):
    """Features of nodes or edges, each a table: ``FeatureStore(pm)`` in place of a PyG feature store.

    ``put_tensor(tensor, group_name, attr_name, index=None)`` makes a table "group_name/attr_name" with a row for each
    of ``tensor`` [num_nodes, ...]; collective. With an ``index`` it sets these rows of a table that is there; not
    collective. ``add_table`` takes one that was made elsewhere. ``get_tensor`` pulls rows, from wherever they are;
    ``index``: a tensor, a list, a slice, a number or None for all. Labels are features too: int64 [num_nodes].

    Threads: any; each has a worker of its own, so a loader may read in one while another trains. Not for the worker
    processes of a DataLoader (HandleError): read ahead instead (``IntentLoader(worker, loader, {})``).
    Raises KeyError for what is not there; ShapeError; as ``create_table``, ``pull`` and ``set``.
    """

    def __init__(self, manager: Any) -> None:
        super().__init__()
        self._manager = manager
        self._tables: dict[tuple[Any, Any], Any] = {}
        self._of_thread = threading.local()

    def add_table(self, table: Any, group_name: Any, attr_name: str) -> None:
        """Makes ``table`` the feature ``attr_name`` of ``group_name``: rows that are trained, say."""
        self._tables[group_name, attr_name] = table

    def get_all_tensor_attrs(self) -> list[TensorAttr]:
        return [self._tensor_attr_cls(*names) for names in self._tables]

    def _put_tensor(self, tensor: Any, attr: TensorAttr) -> bool:
        tensor, names = torch.as_tensor(tensor), (attr.group_name, attr.attr_name)
        if names in self._tables:
            return self._set(self._tables[names], tensor, attr.index)
        if attr.index is not None:
            raise KeyError(f"there is no {names}: put the whole tensor first, with index=None, on every rank")
        name = "/".join([*_words(attr.group_name), str(attr.attr_name)])
        self._tables[names] = table_from(tensor, self._worker(), name, None)
        return True

    def _set(self, table: Any, tensor: torch.Tensor, index: Any) -> bool:
        keys = _keys_of(table, index)
        if tuple(tensor.shape) != (len(keys), *table.row_shape):
            raise ShapeError(f"{table!r}: {len(keys)} rows cannot be set to a tensor of shape {tuple(tensor.shape)}")
        self._worker().set(table, keys, as_array(tensor, table.dtype))
        return True

    def _get_tensor(self, attr: TensorAttr) -> torch.Tensor:
        table = self._table_of(attr)
        keys = _keys_of(table, attr.index)
        rows = np.empty((len(keys), *table.row_shape), table.dtype)
        for start in range(0, len(keys), ROWS_A_CALL):
            part = slice(start, start + ROWS_A_CALL)
            self._worker().pull(table, keys[part], out=rows[part])
        return as_tensor(rows)

    def _remove_tensor(self, attr: TensorAttr) -> bool:
        """Its table stays."""
        return self._tables.pop((attr.group_name, attr.attr_name), None) is not None

    def update_tensor(self, tensor: Any, *names: Any, **more: Any) -> bool:
        """Sets rows, of all keys with ``index=None``. Not collective."""
        attr = self._tensor_attr_cls.cast(*names, **more)
        return self._set(self._table_of(attr), torch.as_tensor(tensor), attr.index)

    def _get_tensor_size(self, attr: TensorAttr) -> tuple[int, ...]:
        table = self._table_of(attr)
        return (_count_of(table, attr.index), *table.row_shape)

    def _table_of(self, attr: TensorAttr) -> Any:
        names = (attr.group_name, attr.attr_name)
        if names not in self._tables:
            raise KeyError(f"there is no {names} here: there are {list(self._tables)}")
        return self._tables[names]

    def _worker(self) -> Any:
        if not hasattr(self._of_thread, "worker"):
            self._of_thread.worker = self._manager.worker()
        return self._of_thread.worker


def _words(group_name: Any) -> list[str]:
    """Of a node type, or of an edge type: a tuple. A homogeneous graph has None."""
    return [] if group_name is None else [group_name] if isinstance(group_name, str) else list(map(str, group_name))


def _count_of(table: Any, index: Any) -> int:
    """How many keys ``_keys_of`` names; without making a list of all of them."""
    if index is None or isinstance(index, slice):
        return len(range(table.num_keys)[slice(None) if index is None else index])
    return len(_keys_of(table, index))


def _keys_of(table: Any, index: Any) -> Any:
    """int64 [K]"""
    if index is None or isinstance(index, slice):
        keys = range(table.num_keys)[slice(None) if index is None else index]
        return np.arange(keys.start, keys.stop, keys.step)
    index = torch.as_tensor(index)
    if index.is_floating_point() and index.numel():
        raise DtypeError(f"an index of {index.dtype}: pass integers, or a mask")
    index = index.nonzero() if index.dtype == torch.bool else index
    return index.reshape(-1).to(device="cpu", dtype=torch.int64).numpy()
