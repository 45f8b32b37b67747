"""What calls are waited for by."""

from dataclasses import dataclass, field

import pytest

from intentpm.adapm.timestamps import Call, Timestamps
from intentpm.foundation.errors import DtypeError, Error


@dataclass
class FutureOfTest:
    is_done: bool = False
    waits: list[str] = field(default_factory=list)

    def done(self) -> bool:
        return self.is_done

    def wait(self) -> None:
        self.waits.append("wait")


def test_numbers_rise_from_zero() -> None:
    timestamps = Timestamps()
    assert [timestamps.number(), timestamps.keep(Call()), timestamps.number()] == [0, 1, 2]


def test_waiting_ends_a_call_once() -> None:
    timestamps, future, ends = Timestamps(), FutureOfTest(), []
    number = timestamps.keep(Call([future], [lambda: ends.append(list(future.waits))]))
    timestamps.wait(number)
    timestamps.wait(number)
    timestamps.wait_all()
    assert (future.waits, ends) == (["wait"], [["wait"]])


def test_minus_one_needs_no_wait() -> None:
    Timestamps().wait(-1)


@pytest.mark.parametrize("number", [0, 7, -2])
def test_a_number_that_no_call_returned(number: int) -> None:
    with pytest.raises(Error, match=f"timestamp {number}: no call"):
        Timestamps().wait(number)


def test_a_timestamp_is_a_whole_number() -> None:
    with pytest.raises(DtypeError, match="timestamp=None"):
        Timestamps().wait(None)


def test_calls_that_nobody_waits_for_are_forgotten_when_they_are_done() -> None:
    timestamps, ends = Timestamps(), []
    slow = FutureOfTest()
    timestamps.keep(Call([slow]))
    for number in range(10_000):
        timestamps.keep(Call([FutureOfTest(is_done=True)], [lambda number=number: ends.append(number)]))
    assert len(timestamps._open) <= 512
    assert len(ends) > 9000
    timestamps.wait_all()
    assert ends == list(range(10_000))
    assert slow.waits == ["wait"]
