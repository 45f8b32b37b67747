"""Jobs whose processes meet as AdaPM's do: ``size`` ranks and a scheduler, all started by ``spawn_world``.

def work(server, number):      # of a test module; runs in each worker thread
    kv = adapm.Worker(number, server)
    ...
    return result

def process(*job):
    return run_process(globals(), *job)

spawn_world(size + 1, process, *job_of(size, work))[:size]   # the last is the scheduler
"""

import os
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from intentpm import adapm


def job_of(
    size: int, work: Callable[..., Any], *, num_keys: int = 40, num_threads: int = 1, lengths: Any = 2
) -> tuple[Any, ...]:
    """What ``process`` of a test module gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return size, port, work.__name__, num_keys, num_threads, lengths


def run_process(
    functions: Mapping[str, Any], size: int, port: int, work: str, num_keys: int, num_threads: int, lengths: Any
) -> list[Any] | None:
    """What ``work`` returned in each thread of this process; None of the scheduler."""
    is_scheduler = int(os.environ["INTENTPM_RANK"]) == size
    os.environ["DMLC_NUM_SERVER"] = str(size)
    os.environ["DMLC_ROLE"] = "scheduler" if is_scheduler else "server"
    os.environ["DMLC_PS_ROOT_URI"] = "127.0.0.1"
    os.environ["DMLC_PS_ROOT_PORT"] = str(port)
    if is_scheduler:
        adapm.scheduler(num_keys, num_threads)
        return None
    adapm.setup(num_keys, num_threads)
    server = adapm.Server(lengths)
    results = _in_threads(functions[work], server, num_threads)
    server.shutdown()
    return results


def _in_threads(work: Callable[..., Any], server: adapm.Server, num_threads: int) -> list[Any]:
    results: dict[int, Any] = {}
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            results[number] = work(server, number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [results[number] for number in range(num_threads)]
