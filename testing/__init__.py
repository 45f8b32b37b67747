"""For tests of programs that use intentpm: several ranks in this process, over real or simulated networks.

    from intentpm.testing import run_ranks

    def train(pm):
        table = pm.create_table("t", num_keys=100, row_shape=8)
        ...
        return pm.worker().pull(table, [0]).sum()

    assert run_ranks(3, train) == [0.0, 0.0, 0.0]

Under pytest the fixture ``run_ranks`` is the same function; nothing need be imported.
"""

from intentpm.testing.ranks import run_ranks

__all__ = ["run_ranks"]
