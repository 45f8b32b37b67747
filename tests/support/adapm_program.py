"""A program as they are written for AdaPM's bindings: it starts a scheduler and two processes of two worker threads.

Usage: python adapm_program.py spawn|fork FOLDER. Each worker writes what it saw to FOLDER/<worker>.json.
"""

import json
import os
import socket
import sys
import threading
from pathlib import Path

import torch
import torch.multiprocessing as multiprocessing

import intentpm.adapm as adapm

NODES, THREADS, NUM_KEYS, LENGTH, LONG_KEY = 2, 2, 1000, 2, 400


def set_variables(role: str, port: int) -> None:
    os.environ["DMLC_NUM_SERVER"] = str(NODES)
    os.environ["DMLC_ROLE"] = role
    os.environ["DMLC_PS_ROOT_URI"] = "127.0.0.1"
    os.environ["DMLC_PS_ROOT_PORT"] = str(port)


def run_scheduler(port: int) -> None:
    set_variables("scheduler", port)
    adapm.scheduler(NUM_KEYS, THREADS)


def run_node(port: int, folder: str) -> None:
    set_variables("server", port)
    adapm.setup(NUM_KEYS, THREADS)
    value_lengths = torch.ones(NUM_KEYS) * LENGTH
    value_lengths[LONG_KEY] = 10
    server = adapm.Server(value_lengths)
    server.enable_sampling_support(
        scheme="local", with_replacement=True, distribution="uniform", min=0, max=NUM_KEYS // 2
    )
    server.barrier()
    threads = []
    for number in range(THREADS):
        worker_id = server.my_rank() * THREADS + number
        kv = adapm.Worker(number, server)
        threads.append(threading.Thread(target=train, args=(worker_id, server.my_rank(), kv, folder)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    server.shutdown()


def train(worker_id: int, rank: int, kv: adapm.Worker, folder: str) -> None:
    try:
        keys = torch.LongTensor([1, 333, 666, 960])
        updates = torch.full((len(keys) * LENGTH,), float(worker_id + 1))
        pushed = 0.0
        kv.begin_setup()
        if worker_id == 0:
            kv.set(keys, torch.zeros(len(keys), LENGTH))
        kv.end_setup()
        for step in range(30):
            kv.intent(keys, kv.current_clock() + 1)
            kv.advance_clock()
            timestamp = kv.push(keys, updates, True)
            if step % 10 == 0:
                kv.wait(timestamp)
            pushed += worker_id + 1
            vals = torch.empty(len(keys), LENGTH)
            kv.pull(keys, vals)
            if vals.min() < pushed:
                raise RuntimeError(f"own pushes are not in {vals}")
            sample = kv.prepare_sample(8, kv.current_clock())
            kv.pull_sample(sample, torch.zeros(8, dtype=torch.int64), torch.empty(8, LENGTH))
        kv.push(torch.LongTensor([LONG_KEY]), torch.full((10,), 2.0), True)
        kv.waitall()
        kv.wait_sync()
        kv.barrier()
        vals, long = torch.empty(len(keys) * LENGTH), torch.empty(2, 5)
        kv.pull(keys, vals)
        kv.pull(torch.LongTensor([LONG_KEY]), long)
        assert (vals == vals[0]).all()
        said = {"rank": rank, "pushed": pushed, "pulled": float(vals[0]), "long": long.flatten().tolist()}
        Path(folder, f"{worker_id}.json").write_text(json.dumps(said))
        kv.finalize()
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)


def main(method: str, folder: str) -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    context = multiprocessing.get_context(method)
    processes = [context.Process(target=run_scheduler, args=(port,))]
    processes += [context.Process(target=run_node, args=(port, folder)) for _ in range(NODES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return max(abs(process.exitcode) for process in processes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
