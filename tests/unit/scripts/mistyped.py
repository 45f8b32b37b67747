"""Mistakes of a user, each with the code of the error that ``mypy --strict`` should give (``test_types.py``)."""

import numpy as np

import intentpm
from intentpm.testing import run_ranks


def access(worker: intentpm.Worker, table: intentpm.Table) -> None:
    worker.pull(table, key=[1])  # call-overload
    worker.pull(table, "12")  # arg-type
    worker.pull(table, ["1", "2"])  # list-item
    worker.pull(table, [1], out=[0.0])  # call-overload
    worker.push(table, [1], delta=[[1.0]])  # call-arg
    worker.push(table, "12", [[1.0]])  # arg-type
    worker.push(table, [1.5], [[1.0]])  # list-item
    worker.push(table, np.zeros(1), [[1.0]])  # arg-type
    worker.set("items", [1], [[1.0]])  # arg-type
    worker.intent(table, [1])  # call-arg
    worker.wait_sync(timeout="1")  # arg-type
    rows: int = worker.pull_async(table, [1]).result()  # assignment
    rows = worker.push_async(table, [1], [[1.0]]).result()  # assignment
    table.num_keys = rows  # misc


def declare(pm: intentpm.ParameterManager) -> None:
    pm.create_table("items", num_rows=10)  # call-arg
    table = pm.create_table("items", 10, row_shape="4")  # arg-type
    pm.create_sampling(table, "zipf")  # arg-type
    pm.create_sampling(table, scheme="fast")  # arg-type
    pm.prepare_sample(table, 1, 0)  # attr-defined


intentpm.init(management="fast")  # arg-type
print(intentpm.Tables)  # attr-defined
run_ranks(2, access)  # arg-type
run_ranks(2, declare, "udp")  # arg-type
