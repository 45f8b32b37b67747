"""The code in docs/torch.md runs as it stands there."""

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import intentpm.optim  # noqa: E402
import intentpm.torch  # noqa: E402
from intentpm.testing import run_ranks  # noqa: E402

PAGE = Path(__file__).resolve().parents[3] / "docs" / "torch.md"


def code_under(heading: str) -> str:
    """The first block of Python below a heading."""
    below = PAGE.read_text().split(f"# {heading}\n", 1)[1]
    return re.search(r"```python\n(.*?)```", below, re.DOTALL)[1]


@pytest.mark.parametrize("n", [1, 2])
def test_negative_samples(n: int) -> None:
    pairs = torch.utils.data.TensorDataset(torch.arange(40) % 10, torch.arange(40) % 7)

    def main(pm):
        torch.manual_seed(0)
        rows = torch.randn(100, 4).numpy()
        table = pm.create_table("t", 100, 4, init=rows, optimizer=intentpm.optim.Adagrad(lr=0.1))
        there = {
            "intentpm": intentpm,
            "torch": torch,
            "softplus": torch.nn.functional.softplus,
            "table": table,
            "worker": pm.worker(),
            "loader": torch.utils.data.DataLoader(pairs, batch_size=4),
        }
        exec(code_under("Negative samples"), there)
        assert there["negatives"].shape == (64, 4)
        there["vectors"].settle()
        pm.barrier()
        trained = (there["vectors"].all_rows() - torch.from_numpy(rows)).abs().amax(1) > 0
        assert trained[:10].all()
        assert trained[10:].float().mean() > 0.9, "drawn among all keys"

    run_ranks(n, main)
