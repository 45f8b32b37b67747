"""A parameter manager of one process whose ranks are threads: the public API over plain NumPy arrays."""

import threading
from collections.abc import Callable

import numpy as np


class SharedTables:
    def __init__(self, size):
        self.size, self.barrier, self.lock, self.tables = (
            size,
            threading.Barrier(size, timeout=60),
            threading.Lock(),
            {},
        )


class Done:
    def __init__(self, value=None):
        self.value = value

    def wait(self):
        pass

    def result(self):
        return self.value


class StandIn:
    def __init__(self, shared, rank):
        self.shared, self.rank, self.size = shared, rank, shared.size
        self.intents, self.clock = [], 0

    def create_table(self, name, num_keys, row_shape, dtype, init):
        with self.shared.lock:
            if name not in self.shared.tables:
                keys = np.arange(num_keys)
                self.shared.tables[name] = (
                    init(keys).astype(dtype)
                    if isinstance(init, Callable)
                    else np.full((num_keys, *row_shape), init, dtype)
                )
        return name

    def worker(self):
        return self

    def barrier(self):
        self.shared.barrier.wait()

    def stats(self):
        return {
            "bytes_sent": 0,
            "bytes_received": 0,
            "tables": {name: {"local": 0, "replica": 0, "remote": 0} for name in self.shared.tables},
        }

    def intent(self, table, keys, start, end=None):
        self.intents.append((table, keys, start, end))

    def advance_clock(self):
        self.clock += 1
        return self.clock

    def wait_sync(self):
        pass

    def pull(self, table, keys):
        with self.shared.lock:
            return self.shared.tables[table][keys]

    def push(self, table, keys, deltas):
        with self.shared.lock:
            np.add.at(self.shared.tables[table], keys, deltas)

    def set(self, table, keys, values):
        with self.shared.lock:
            self.shared.tables[table][keys] = values

    def pull_async(self, table, keys):
        return Done(self.pull(table, keys))

    def push_async(self, table, keys, deltas):
        return Done(self.push(table, keys, deltas))
