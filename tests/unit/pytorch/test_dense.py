"""average_gradients: ranks with different data train as one process with all of it."""

import sys
import time

import pytest

torch = pytest.importorskip("torch")

import intentpm  # noqa: E402
from intentpm.foundation.errors import WaitTimeoutError  # noqa: E402
from intentpm.testing import run_ranks  # noqa: E402
from intentpm.torch import all_reduce, average_gradients, dense  # noqa: E402


def make_model(seed: int):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()


def data_of(step: int, rank: int):
    return torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(100 * step + rank))


def train(model, batches, micro_batches=1, no_sync=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch in batches:
        optimizer.zero_grad()
        for part in batch.chunk(micro_batches)[:-1]:
            with no_sync():
                (model(part) ** 2).mean().backward()
        (model(batch.chunk(micro_batches)[-1]) ** 2).mean().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.fixture
def small_buckets(monkeypatch):
    monkeypatch.setattr(dense, "BUCKET_BYTES", 100)


@pytest.mark.usefixtures("small_buckets")
@pytest.mark.parametrize("n", [1, 3])
def test_equals_one_process_with_all_data(n: int) -> None:
    def main(pm):
        model = models[pm.rank]
        handle = average_gradients(model, pm)
        assert handle.over == "intentpm"
        return train(model, [data_of(step, pm.rank) for step in range(20)])

    models = [make_model(seed=rank) for rank in range(n)]  # here: torch has one random state for all threads
    results = run_ranks(n, main)
    expected = train(make_model(seed=0), [torch.cat([data_of(step, rank) for rank in range(n)]) for step in range(20)])
    for parameters in results:
        for mine, one, first in zip(parameters, expected, results[0], strict=True):
            torch.testing.assert_close(mine, one, rtol=1e-10, atol=1e-12)
            assert torch.equal(mine, first), "ranks drifted apart"


def test_a_parameter_that_only_one_rank_reaches_gets_its_share_everywhere() -> None:
    def main(pm):
        model = models[pm.rank]
        average_gradients(model, pm)
        model[0](torch.ones(1, 2)).sum().backward()
        if pm.rank == 1:
            pm.barrier()
            return None
        pm.barrier()
        return model[1].weight.grad

    models = [torch.nn.ModuleList([torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)]) for _ in range(2)]
    assert run_ranks(2, main)[0].tolist() == [[0.0, 0.0]]


def test_no_sync_accumulates_on_each_rank_and_the_last_pass_averages() -> None:
    def main(pm):
        handle = average_gradients(models[pm.rank], pm)
        train(models[pm.rank], [data_of(step, pm.rank)[:4] for step in range(5)], 2, handle.no_sync)
        handle.remove()
        before = [parameter.grad.clone() for parameter in models[pm.rank].parameters()]
        (models[pm.rank](data_of(9, pm.rank)) ** 2).mean().backward()  # no collective any more
        return [p.grad - b for p, b in zip(models[pm.rank].parameters(), before, strict=True)], list(
            models[pm.rank].parameters()
        )

    models = [make_model(seed=rank) for rank in range(2)]
    (one, first), (two, second) = run_ranks(2, main)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.allclose(one[0], two[0]), "remove() left the averaging on"


def test_16_bit_gradients_and_buffers() -> None:
    def main(pm):
        model = models[pm.rank]
        average_gradients(model, pm)
        model(torch.full((4, 3), 1.0 + pm.rank, dtype=torch.bfloat16)).sum().backward()
        return model[0].bias.grad.tolist(), model[1].running_mean.clone()

    models = [torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).bfloat16().eval() for _ in range(2)]
    models[0][1].running_mean.fill_(5.0)
    (grad, mean), (other_grad, other_mean) = run_ranks(2, main)
    assert grad == other_grad
    assert mean.tolist() == other_mean.tolist() == [5.0, 5.0]


def test_distributed_data_parallel_is_refused() -> None:
    class Wrapped(torch.nn.parallel.DistributedDataParallel):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

    with pytest.raises(intentpm.ConfigError, match="averages its gradients itself"):
        average_gradients(Wrapped(), None)


WAIT_S = 30.0
SHAPES = [(), (0,), (1,), (1000,), (3, 5)]
LARGE = [torch.zeros(all_reduce.SMALL_BYTES // 4), torch.zeros(1)]


class Watched(torch.autograd.Function):
    """Backward stands still until ``condition`` is true."""

    @staticmethod
    def forward(ctx, value, condition):
        ctx.condition = condition
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        end = time.monotonic() + WAIT_S
        while not ctx.condition():
            assert time.monotonic() < end, "the sum of the last layer does not travel while backward goes on"
            time.sleep(0.001)
        return gradient, None


def sums_travel_during_backward(pm, chosen) -> bool:
    """Whether the gradients of the last layer are there before backward goes on to the first."""
    first, last = torch.nn.Linear(4, 600), torch.nn.Linear(600, 600)  # larger than a bucket, and than MPI sends at once
    handle = dense.DenseGradients(torch.nn.Sequential(first, last), pm, chosen)
    last(Watched.apply(first(torch.ones(1, 4)), lambda: handle._begun and handle._begun[0][1].done())).sum().backward()
    return bool((last.bias.grad == 1).all())


def sum_over_ranks() -> tuple[str, bool]:
    """Runs on each rank of a real job: all sizes and dtypes over whatever this job has."""
    with intentpm.init() as pm:
        chosen = all_reduce.choose_all_reduce(pm, LARGE)
        begun = []
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64):
            for shape in SHAPES:
                tensor = torch.full(shape, pm.rank + 1, dtype=dtype)
                begun.append((tensor, chosen.start(tensor)))
        for _, total in begun:
            total.finish()
        expected = sum(range(1, pm.size + 1))
        summed = all(bool((tensor == expected).all()) for tensor, _ in begun)
        return chosen.name, summed and sums_travel_during_backward(pm, chosen)


@pytest.mark.multiprocess
def test_sums_over_the_manager(spawn_world) -> None:
    assert spawn_world(2, sum_over_ranks) == [("intentpm", True)] * 2


def train_a_small_model() -> bool:
    """All ranks on one host: not over the process group. In one bucket, or several, all but the last in a thread."""
    with intentpm.init() as pm:
        means = []
        for bucket_bytes in (dense.BUCKET_BYTES, 24):
            dense.BUCKET_BYTES, before = bucket_bytes, dense.BUCKET_BYTES
            model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
            handle = average_gradients(model, pm)
            dense.BUCKET_BYTES = before
            assert handle.over == "intentpm"
            model(torch.full((4, 3), 1.0 + pm.rank)).sum().backward()
            means.append(model[1].bias.grad.item())
            weights = pm.allgather(model[0].weight.grad.numpy().tobytes())
            assert len(set(weights)) == 1
        return means == [4.0, 4.0]


def sum_over_the_manager_for_which_a_rank_is_late(soon: bool) -> bool:
    """Rank 1 comes only when rank 0 has given up once."""
    with intentpm.init() as pm:
        chosen, tensor = all_reduce.ManagerAllReduce(pm), torch.ones(3)
        if pm.rank == 0:
            all_reduce.SUM_S = 0.2
            total = chosen.start(tensor, soon)
            with pytest.raises(WaitTimeoutError, match=r"allgather\(\)"):
                total.finish()
            all_reduce.SUM_S = 60.0
        else:
            time.sleep(1.0)
            total = chosen.start(tensor, soon)
        for _ in range(2):
            total.finish()
        return tensor.tolist() == [2.0] * 3


@pytest.mark.multiprocess
@pytest.mark.parametrize("soon", [False, True])
def test_a_sum_over_the_manager_that_was_given_up_goes_on(spawn_world, soon: bool) -> None:
    assert spawn_world(2, sum_over_the_manager_for_which_a_rank_is_late, soon) == [True] * 2


@pytest.mark.parametrize(
    ("other", "small"), [(lambda mine: mine, True), (lambda mine: b"x" * (len(mine) - 1) + mine[-1:], False)]
)
def test_small_models_of_one_host_alone_are_summed_over_the_manager(other, small: bool) -> None:
    """Of two hosts each would send all gradients to rank 0, behind the rows."""

    class Manager:
        @staticmethod
        def allgather(mine: bytes) -> list[bytes]:
            return [mine, other(mine)]

    assert all_reduce._is_small_job(Manager, LARGE[1:]) == small
    assert not all_reduce._is_small_job(Manager, LARGE)


def sum_over_process_group(port: int) -> tuple[str, bool]:
    import os

    torch.distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=int(os.environ["INTENTPM_RANK"]), world_size=2
    )
    try:
        return train_a_small_model() and sum_over_ranks()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.multiprocess
def test_sums_over_torch_distributed(spawn_world) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    results = spawn_world(2, sum_over_process_group, port, check_leaks=False)
    assert results == [("torch.distributed", True)] * 2


def sum_that_a_rank_does_not_come_to() -> bool:
    """Rank 1 comes only when rank 0 has given up once."""
    with intentpm.init() as pm:
        chosen, tensor = all_reduce.choose_all_reduce(pm, LARGE), torch.ones(3)
        total = chosen.start(tensor) if pm.rank == 0 else None
        if total is not None:
            all_reduce.SUM_S = 0.2
            with pytest.raises(
                WaitTimeoutError, match="rank 0: not all 2 ranks came to a sum of dense gradients within"
            ):
                total.finish()
            all_reduce.SUM_S = 60.0
        pm.barrier()
        total = total or chosen.start(tensor)
        total.finish()
        return tensor.tolist() == [2.0] * 3


if __name__ == "__main__":  # under mpirun, by the test below
    print(*sum_over_ranks(), sum_that_a_rank_does_not_come_to(), flush=True)


@pytest.mark.multiprocess
def test_sums_over_mpi() -> None:
    import os
    import subprocess
    from pathlib import Path

    pytest.importorskip("mpi4py")
    mpirun = Path(sys.executable).with_name("mpirun")
    if not mpirun.exists():
        pytest.skip("no mpirun beside this python: the extra mpi is not installed")
    argv = [mpirun, "--oversubscribe", "--bind-to", "none", "--allow-run-as-root", "-n", "2", sys.executable, __file__]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=90, env=os.environ, check=False)
    assert done.stdout.split("\n")[:-1] == ["MPI True True"] * 2, done.stderr
