"""AdaPM's PyTorch bindings, as a module to import in place of theirs: ``import intentpm.adapm as adapm``.

    adapm.setup(num_keys, num_threads)                # in each process; reads DMLC_NUM_SERVER, DMLC_ROLE, ...
    server = adapm.Server(value_lengths)
    worker = adapm.Worker(0, server)                  # one per thread
    worker.intent(keys, worker.current_clock() + 10)
    worker.pull(keys, values)                         # torch tensors or numpy arrays
    worker.push(keys, updates, True)
    worker.advance_clock()
    worker.finalize()
    server.shutdown()

What is different is in docs/migrating-from-adapm.md.
"""

from intentpm.adapm.job import scheduler, setup
from intentpm.adapm.server import Server
from intentpm.adapm.worker import Worker

__all__ = ["Server", "Worker", "scheduler", "setup"]
