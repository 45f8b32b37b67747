"""Collective calls of more ranks than a rank has children in the tree that answers go down."""

import pytest
from support.simulation import simulate

import intentpm

SIZE = 40
LATE_US = 5_000.0


def test_every_rank_gets_everybody_s_payload() -> None:
    with simulate(SIZE, 1) as job:
        expected = [b"%d" % rank for rank in range(SIZE)]
        assert job.on_every_rank(lambda pm: pm.allgather(b"%d" % pm.rank)) == [expected] * SIZE
        assert job.on_every_rank(lambda pm: pm.allgather(b"same")) == [[b"same"] * SIZE] * SIZE
        assert job.on_every_rank(lambda pm: pm.allgather(b"")) == [[b""] * SIZE] * SIZE


def test_no_rank_sends_an_answer_to_all() -> None:
    payload = b"x" * 100
    with simulate(SIZE, 2) as job:
        before = [pm.stats()["bytes_sent"] for pm in job.ranks]
        job.on_every_rank(lambda pm: pm.allgather(payload + b"%d" % pm.rank))
        sent = [pm.stats()["bytes_sent"] - was for pm, was in zip(job.ranks, before, strict=True)]
    assert sum(sent) > (SIZE - 1) * SIZE * len(payload)
    assert max(sent) < 0.5 * sum(sent)


@pytest.mark.parametrize("straggler", [0, 1, 20, SIZE - 1])
def test_who_passes_answers_on_may_have_given_up(straggler: int) -> None:
    """Rank 1 has children; it does not wait for the answer that it passes on to them."""
    with simulate(SIZE, 3) as job:

        def target(pm: intentpm.ParameterManager) -> list[bytes]:
            if pm.rank == straggler:
                job.network.pause(LATE_US)
            elif pm.rank in (1, 2):
                with pytest.raises(intentpm.WaitTimeoutError, match=rf"ranks \[{straggler}\] have not come"):
                    pm.allgather(b"x", timeout=0.0005)
                job.network.pause(3 * LATE_US)
            return pm.allgather(b"x")

        assert job.on_every_rank(target) == [[b"x"] * SIZE] * SIZE


@pytest.mark.parametrize("lost", [0, 1, 39])
def test_a_rank_lost_before_the_answer_reached_all_is_named(lost: int) -> None:
    with simulate(SIZE, 4) as job:

        def target(pm: intentpm.ParameterManager) -> str:
            if pm.rank == lost:
                job.network.kill(lost)
                return ""
            with pytest.raises(intentpm.PeerLostError) as caught:
                pm.barrier()
            return str(caught.value)

        for rank, said in enumerate(job.on_every_rank(target)):
            assert rank == lost or f"rank {lost}" in said
        job.abort()
