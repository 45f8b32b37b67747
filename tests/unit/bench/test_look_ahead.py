"""Look-ahead loading: what is signalled, when, and for which clock."""

import numpy as np
import pytest

from intentpm.bench.tasks.look_ahead import look_ahead


class RecordingWorker:
    def __init__(self, clock=0):
        self.clock, self.events = clock, []

    def intent(self, table, keys, start, end):
        self.events.append(("intent", table, keys.tolist(), start, end, self.clock))

    def wait_intents(self):
        self.events.append(("wait_intents", self.clock))

    def advance_clock(self):
        self.clock += 1
        return self.clock


class KeyBatch:
    def __init__(self, number):
        self.number = number

    def accesses(self):
        return [("table", np.array([self.number]))]


def signalled(worker):
    return [event for event in worker.events if event[0] == "intent"]


@pytest.mark.parametrize("depth", [1, 3, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 10])
def test_each_batch_is_used_in_the_clock_it_was_signalled_for(depth, count):
    worker = RecordingWorker(clock=5)
    used = [(batch.number, worker.clock) for batch in look_ahead(worker, map(KeyBatch, range(count)), depth)]
    assert used == [(number, 5 + number) for number in range(count)]
    assert worker.clock == 5 + count
    assert [(event[2], event[3], event[4]) for event in signalled(worker)] == [
        ([number], start, start + 1) for number, start in used
    ]


def test_intents_come_depth_clocks_ahead():
    worker = RecordingWorker()
    for _ in look_ahead(worker, map(KeyBatch, range(10)), depth=3):
        pass
    assert [event[3] - event[5] for event in signalled(worker)] == [0, 1, 2, 3, 3, 3, 3, 3, 3, 3]


def test_it_waits_once_for_the_first_intents():
    worker = RecordingWorker()
    for _ in look_ahead(worker, map(KeyBatch, range(5)), depth=2):
        pass
    assert [event for event in worker.events if event[0] == "wait_intents"] == [("wait_intents", 0)]
    assert [event[0] for event in worker.events[:4]] == ["intent", "intent", "intent", "wait_intents"]


def test_depth_zero_signals_nothing_but_keeps_the_clock():
    worker = RecordingWorker()
    assert [batch.number for batch in look_ahead(worker, map(KeyBatch, range(4)), 0)] == [0, 1, 2, 3]
    assert (worker.events, worker.clock) == ([], 4)


def test_batches_are_not_prepared_further_ahead():
    made = []

    def batches():
        for number in range(100):
            made.append(number)
            yield KeyBatch(number)

    iterator = look_ahead(RecordingWorker(), batches(), depth=4)
    next(iterator)
    assert made == [0, 1, 2, 3, 4]


class Manager:
    def __init__(self, horizon_clocks):
        self.horizon_clocks = horizon_clocks

    def stats(self):
        return {"workers": [{"horizon_clocks": self.horizon_clocks}], "intents": {"in_time": 0, "late": 0}}


def test_by_default_it_reaches_as_far_as_the_horizon():
    worker = RecordingWorker()
    worker.manager = Manager(10)
    for number, _ in enumerate(look_ahead(worker, map(KeyBatch, range(100)))):
        if number == 30:
            worker.manager.horizon_clocks = 40
    ahead = [event[3] - event[5] for event in signalled(worker)]
    assert (ahead[30], max(ahead)) == (12, 42)


def test_keys_that_take_much_memory_are_not_signalled_far_ahead():
    class Wide(KeyBatch):
        def accesses(self):
            return [("table", np.broadcast_to(np.int64(self.number), 1 << 23))]  # 64 MB

    worker = RecordingWorker()
    worker.manager, worker.intent = Manager(10), lambda *signal: worker.events.append(("intent", *signal, worker.clock))
    for _ in look_ahead(worker, map(Wide, range(50))):
        pass
    assert max(event[3] - event[5] for event in signalled(worker)) == 4
