"""torch.distributed's RPC (tensorpipe): rank 1 serves a tensor, index_select for pull, index_add_ for push."""

import os
import socket
import warnings
from collections.abc import Callable
from typing import Any

from intentpm.bench.accesses import one_thread_torch
from intentpm.bench.latency.job import Rank

NAME = "torch RPC"
RPC_S = 60.0
SERVER, CLIENT = "server", "client"
_rows: Any = None
"""The server's tensor: a function called by RPC finds it as a global only."""


def start(here: Rank, num_keys: int, dim: int) -> None:
    """Ranks 0 and 1 can call each other then. A task."""
    global _rows
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    port = here.exchange(port.encode())[0].decode()
    if here.rank > 1:
        return
    torch = one_thread_torch()
    from torch.distributed import rpc

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    _rows = torch.ones(num_keys, dim)
    options = rpc.TensorPipeRpcBackendOptions(num_worker_threads=2, rpc_timeout=RPC_S)
    with warnings.catch_warnings(action="ignore"):  # of torch about itself
        rpc.init_rpc((CLIENT, SERVER)[here.rank], rank=here.rank, world_size=2, rpc_backend_options=options)


def stop(here: Rank) -> None:
    """Undoes ``start``. A task."""
    if here.rank <= 1:
        from torch.distributed import rpc

        with warnings.catch_warnings(action="ignore"):
            rpc.shutdown(timeout=RPC_S)


def access(operation: str, num_keys: int, dim: int, count: int) -> Callable[[], object]:
    """One access to ``count`` rows of rank 1."""
    import torch
    from torch.distributed import rpc

    keys = torch.randperm(num_keys)[:count]
    if operation == "pull":
        return lambda: rpc.rpc_sync(SERVER, _pull, args=(keys,))
    deltas = torch.ones(count, dim)
    return lambda: rpc.rpc_sync(SERVER, _push, args=(keys, deltas))


def _pull(keys: Any) -> Any:
    return _rows.index_select(0, keys)


def _push(keys: Any, deltas: Any) -> None:
    _rows.index_add_(0, keys, deltas)
