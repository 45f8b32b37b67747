"""A test of the tests: defects planted in the network or the runtime must be found by the random programs."""

import struct
from collections.abc import Callable

import pytest
from support.programs import run_seed
from support.saves import SAVE_DEFECTS
from support.simulation import MESSAGE_IDS, Simulation

from intentpm.foundation.errors import Error
from intentpm.runtime._native import mutations
from intentpm.transports.sim import SimulationError

ACCESS_HEADER = struct.Struct("=IIIHHBBH")
PULL, PUSH, SET = 0, 1, 2
PRIVATE_TABLE = 1
SEEDS = range(30)
# What a defect may show as: a wrong value or broken invariant; a call that never ends; an error nothing explains.
FOUND = (AssertionError, SimulationError, Error)


def is_access(kind: int) -> Callable[[int, int, bytes, bytes], bool]:
    """Of tables that are only pushed to: a value of another one may be overwritten before anybody looks."""

    def matches(source: int, destination: int, header: bytes, body: bytes) -> bool:
        fields = ACCESS_HEADER.unpack(header)
        return bool(fields[5] == kind and fields[3] != PRIVATE_TABLE)

    return matches


NETWORK_DEFECTS = {
    "push applied twice": ("duplicate", "ACCESS", is_access(PUSH)),
    "push lost": ("drop", "ACCESS", is_access(PUSH)),
    "push corrupted": ("corrupt", "ACCESS", is_access(PUSH)),
    "pull lost": ("drop", "ACCESS", is_access(PULL)),
    "answer to a push lost": ("drop", "REPLY", is_access(PUSH)),
    "answer to a pull lost": ("drop", "REPLY", is_access(PULL)),
    "answer to a pull corrupted": ("corrupt", "REPLY", is_access(PULL)),
    "contribution to a collective lost": ("drop", "COLLECT", None),
    "result of a collective lost": ("drop", "RESULT", None),
    "goodbye lost": ("drop", "LEAVE", None),
}


def seeds_with(action: str, message: str, matches: object, nth: int) -> tuple[int, list[int]]:
    """Runs programs with one defect; returns how many had it, and the seeds of those in which nobody noticed."""
    had_it, unnoticed = 0, []
    for seed in SEEDS:
        jobs: list[Simulation] = []

        def prepare(job: Simulation, jobs: list[Simulation] = jobs) -> None:
            jobs.append(job)
            job.network.mutate(action, MESSAGE_IDS[message], nth, matches)

        try:
            run_seed(seed, "static", prepare=prepare)
            found = False
        except FOUND:
            found = True
        had_it += jobs[0].network.mutations_applied
        if jobs[0].network.mutations_applied and not found:
            unnoticed.append(seed)
    return had_it, unnoticed


@pytest.mark.parametrize("name", NETWORK_DEFECTS)
def test_defect_of_the_network_is_found(name: str) -> None:
    action, message, matches = NETWORK_DEFECTS[name]
    had_it, unnoticed = seeds_with(action, message, matches, nth=1)
    assert had_it >= len(SEEDS) // 2, f"the programs hardly ever send what this defect needs: {had_it} of {len(SEEDS)}"
    assert not unnoticed, f"{name}: not noticed with seeds {unnoticed}"


@pytest.mark.parametrize("message", ["ACCESS", "REPLY", "RESULT", "LEAVE"])
def test_delay_of_any_message_is_no_defect(message: str) -> None:
    """The contract of transports allows it: whoever complains about it relies on the order of messages."""
    for seed in SEEDS:
        run_seed(seed, prepare=lambda job: job.network.mutate("delay", MESSAGE_IDS[message], 1))


# The mode in which a defect shows soonest. Default: drawn from the seed.
MODES = {
    "fence open": "replicate",
    "sync without news": "full_replication",
    "records first": "relocate",
    "home not told": "relocate",
    "deltas twice": "replicate",
    "parking refused": "relocate",
    "same always": "replicate",
    "holders not passed on": "adaptive",
    "last news untold": "adaptive",
    "kept lost": "replicate",
    "kept twice": "replicate",
    "steps recounted": "adaptive",
    "fetched kept": "adaptive",
}


# The random programs use whole numbers, and look at copies that are synchronised: the others of these are found in
# test_rounding.py, test_freshness.py, test_contended_keys.py, test_lagging_state.py and test_saves.py.
ELSEWHERE = {
    "rounding forgotten",
    "lag untold",
    "news never ripe",
    "rests for good",
    "writes not spread",
    *SAVE_DEFECTS,
}


@pytest.mark.parametrize("name", sorted(mutations.NAMES.keys() - ELSEWHERE))
def test_defect_of_the_runtime_is_found(name: str) -> None:
    with mutations.plant(name):
        for seed in range(2000):
            try:
                run_seed(seed, MODES.get(name))
            except FOUND:
                return
    pytest.fail(f"2,000 programs did not notice the planted defect {name!r}")
