"""Baseline: torch.distributed's RPC (tensorpipe) serves a tensor: index_select for pull, index_add_ for push."""

import os
import socket
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any

from intentpm.bench.scenarios.busy_loops import BUSY_LOOPS, spin
from intentpm.bench.scenarios.calls import timed_calls
from intentpm.bench.scenarios.remote_access import BUSY_SHARE
from intentpm.bench.scenarios.transport_contenders import UnavailableError
from intentpm.bench.scenarios.two_processes import Cases, run_pair

NAME = "torch RPC"
START_S = 60.0
SERVER, CLIENT = "server", "client"
_rows: Any = None
"""The server's tensor: a function called by RPC finds it as a global only."""


def rpc_rows(arguments: Mapping[str, Any]) -> Cases:
    """Measures ``arguments`` as ``remote_access`` does. Raises UnavailableError."""
    if find_spec("torch") is None:
        raise UnavailableError("torch is not installed")
    return run_pair(_side, arguments, START_S + 3 * len(arguments["cases"]) * arguments["case_s"])


def _pull(keys: Any) -> Any:
    return _rows.index_select(0, keys)


def _push(keys: Any, deltas: Any) -> None:
    _rows.index_add_(0, keys, deltas)


def _side(rank: int, between: Connection, arguments: Mapping[str, Any]) -> Cases:
    import torch
    from torch.distributed import rpc

    global _rows
    torch.set_num_threads(1)
    _rows = torch.ones(arguments["num_keys"], arguments["dim"])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=_agree_on_port(rank, between))
    options = rpc.TensorPipeRpcBackendOptions(num_worker_threads=2, rpc_timeout=START_S)
    rpc.init_rpc((SERVER, CLIENT)[rank], rank=rank, world_size=2, rpc_backend_options=options)
    cases: Cases = []
    for situation, operation, keys in arguments["cases"]:
        if rank == 0:
            _serve(situation, between, arguments["case_s"])
        else:
            pause_s = arguments["interval_s"] if situation == "spaced" else 0.0
            call = _call(operation, keys, arguments)
            between.recv()
            samples = timed_calls(call, arguments["repeats"], BUSY_SHARE * arguments["case_s"], pause_s)
            between.send("done")
            cases.append({"situation": situation, "operation": operation, "keys": keys, "samples": samples})
    rpc.shutdown()
    return cases


def _serve(situation: str, between: Connection, case_s: float) -> None:
    step = BUSY_LOOPS[situation]() if situation in BUSY_LOOPS else None
    between.send("ready")
    if step is not None:
        spin(step, case_s)
    between.recv()


def _call(operation: str, count: int, arguments: Mapping[str, Any]) -> Callable[[], object]:
    import torch
    from torch.distributed import rpc

    keys = torch.randperm(arguments["num_keys"])[:count]
    if operation == "pull":
        return lambda: rpc.rpc_sync(SERVER, _pull, args=(keys,))
    deltas = torch.ones(count, arguments["dim"])
    return lambda: rpc.rpc_sync(SERVER, _push, args=(keys, deltas))


def _agree_on_port(rank: int, between: Connection) -> str:
    if rank == 1:
        return str(between.recv())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    between.send(port)
    return port
