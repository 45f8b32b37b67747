"""Dense layers in a checkpoint: parameters and what Adam keeps of them, on real ranks.

Models are made before the ranks start: these are threads, and would draw from one random generator.
"""

from copy import deepcopy

import pytest

torch = pytest.importorskip("torch")


def layers(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(30, 50), torch.nn.ReLU(), torch.nn.Linear(50, 1))


def steps(model, optimizer, inputs):
    for batch in inputs:
        optimizer.zero_grad()
        model(batch).square().sum().backward()
        optimizer.step()


def test_a_model_goes_on_as_if_it_had_not_been_away(run_ranks):
    from intentpm.bench.tasks.adam_rows import AdamRows

    inputs = torch.randn(8, 5, 30, generator=torch.Generator().manual_seed(1))
    first, others = layers(0), [layers(1), layers(2)]

    def train(pm):
        model, other = deepcopy(first), others[pm.rank]
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        rows = AdamRows(optimizer, pm, pm.worker())
        steps(model, optimizer, inputs[:4])
        rows.write()
        pm.barrier()
        # Another model, of a process that begins.
        rows.optimizer = torch.optim.Adam(other.parameters(), lr=0.01)
        rows.parameters = list(other.parameters())
        rows.read()
        steps(model, optimizer, inputs[4:])
        steps(other, rows.optimizer, inputs[4:])
        return [torch.equal(*pair) for pair in zip(model.parameters(), other.parameters(), strict=True)]

    assert run_ranks(2, train) == [[True] * 4] * 2


def test_before_the_first_step(run_ranks):
    from intentpm.bench.tasks.adam_rows import AdamRows

    def train(pm):
        model = layers(0)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        rows = AdamRows(optimizer, pm, pm.worker())
        rows.write()
        pm.barrier()
        rows.read()
        steps(model, optimizer, [])
        return [torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True)] + [
            float(optimizer.state[parameter]["step"]) for parameter in model.parameters()
        ]

    assert run_ranks(1, train) == [[True] * 4 + [0.0] * 4]
