"""Baselines that are two Python processes: rank 0 serves, rank 1 asks."""

import os
import time
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from intentpm.bench.scenarios.links import ONE_THREAD
from intentpm.bench.scenarios.transport_contenders import UnavailableError

END_S = 5.0

Cases = list[dict[str, Any]]
Side = Callable[[int, Connection, Mapping[str, Any]], Cases]
"""``side(rank, connection, arguments)``: the connection leads to the other rank; rank 1 returns the cases."""


def run_pair(side: Side, arguments: Mapping[str, Any], timeout_s: float) -> Cases:
    """What ``side``, a function of a module, returned as rank 1. Raises UnavailableError: it failed, or took too long.

    Both processes have ended when this returns.
    """
    context = get_context("spawn")
    between = context.Pipe()
    results = [context.Pipe() for _ in range(2)]
    ranks = [
        context.Process(target=_run_side, args=(side, rank, between[rank], results[rank][1], dict(arguments)))
        for rank in range(2)
    ]
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        for process in ranks:
            process.start()
        deadline_s = time.monotonic() + timeout_s
        return [_expect(end, process, deadline_s) for (end, _), process in zip(results, ranks, strict=True)][1]
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        for process in ranks:
            _end(process)
        for end in (*between, *(end for pair in results for end in pair)):
            end.close()


def _end(process: BaseProcess) -> None:
    if process.pid is None:
        return
    process.join(END_S)
    if process.is_alive():
        process.kill()
        process.join()


def _expect(end: Connection, process: BaseProcess, deadline_s: float) -> Cases:
    while not end.poll(0.05):
        if not process.is_alive() and not end.poll(0):
            raise UnavailableError(f"rank {process.name} died with exit code {process.exitcode}")
        if time.monotonic() > deadline_s:
            raise UnavailableError("did not finish in time")
    result = end.recv()
    if isinstance(result, Exception):
        raise result
    return list(result)


def _run_side(side: Side, rank: int, between: Connection, result: Connection, arguments: dict[str, Any]) -> None:
    try:
        result.send(side(rank, between, arguments))
    except Exception as error:
        result.send(UnavailableError(f"{type(error).__name__}: {error}"))
