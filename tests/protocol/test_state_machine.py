"""The checks of the random programs, with steps and interleavings chosen by hypothesis, which also shrinks them."""

from collections import deque
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.programs import MODES, OPTIMIZERS, ROW_ITEMS, Plan, Program, Step, WorkerProgram
from support.simulation import Simulation

from intentpm.runtime.config import Config
from intentpm.transports.sim_model import NetworkModel

KEYS = 6
key_lists = st.lists(st.integers(0, KEYS - 1), min_size=1, max_size=5)


class JobMachine(RuleBasedStateMachine):
    """Workers wait, parked, for their next step; between steps hypothesis lets a number of events happen."""

    def __init__(self) -> None:
        super().__init__()
        self.job: Simulation | None = None
        self.failed = False

    @initialize(
        size=st.integers(2, 8),
        workers_per_rank=st.integers(1, 2),
        management=st.sampled_from(MODES),
        timing=st.sampled_from(("adaptive", "immediate")),
        seed=st.integers(0, 999),
    )
    def start(self, size: int, workers_per_rank: int, management: Any, timing: Any, seed: int) -> None:
        config = Config(management=management, timing=timing, seed=seed)
        plan = Plan(size, workers_per_rank, 0, dict.fromkeys(ROW_ITEMS, KEYS), config, NetworkModel.disorderly(seed))
        self.job = Simulation(size, seed, config, plan.model, max_virtual_s=60.0)
        self.job.ask_early(plan.early_records)
        self.job.hand_over(seed % 2 == 1)
        self.job.gather((0.0, 100.0, 3000.0)[seed % 3])
        self.program = self._guarded(Program, self.job, plan)
        self.steps: list[deque[Step | None]] = [deque() for _ in self.program.workers]
        self.tasks = [
            self.job.spawn(worker.rank, lambda worker=worker, steps=steps: self._work(worker, steps), str(worker))
            for worker, steps in zip(self.program.workers, self.steps, strict=True)
        ]

    def _work(self, worker: WorkerProgram, steps: "deque[Step | None]") -> None:
        while True:
            while not steps:
                self.job.network.park()  # type: ignore[union-attr]
            step = steps.popleft()
            if step is None:
                return
            worker.do(step)

    def _guarded(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except BaseException:
            self.failed = True
            raise

    def _give(self, number: int, step: Step | None) -> None:
        number %= len(self.tasks)
        self.steps[number].append(step)
        self.job.network.unpark(self.tasks[number])  # type: ignore[union-attr]

    @rule(number=st.integers(0, 15), table=st.sampled_from(tuple(ROW_ITEMS)), keys=key_lists, wait=st.booleans())
    def pull(self, number: int, table: str, keys: list[int], wait: bool) -> None:
        self._give(number, Step("pull" if wait else "pull_async", table, tuple(keys)))

    @rule(number=st.integers(0, 15), table=st.sampled_from(("shared", "wide")), keys=key_lists, wait=st.booleans())
    def push(self, number: int, table: str, keys: list[int], wait: bool) -> None:
        amounts = tuple(range(1, len(keys) + 1))
        self._give(number, Step("push" if wait else "push_async", table, tuple(keys), amounts))

    @rule(
        number=st.integers(0, 15),
        table=st.sampled_from(tuple(OPTIMIZERS)),
        keys=key_lists,
        wait=st.booleans(),
        duplicates=st.sampled_from(("sum", "each")),
    )
    def push_grad(self, number: int, table: str, keys: list[int], wait: bool, duplicates: str) -> None:
        amounts = tuple(range(1, len(keys) + 1))
        call = "push" if wait else "push_async"
        self._give(number, Step(call, table, tuple(keys), amounts, duplicates=duplicates))

    @rule(
        number=st.integers(0, 15),
        value=st.integers(1, 999),
        call=st.sampled_from(("set", "set_async", "push", "push_async")),
    )
    def write_private(self, number: int, value: int, call: str) -> None:
        keys = tuple(self.program.workers[number % len(self.tasks)].my_private_keys())
        if keys:
            self._give(number, Step(call, "private", keys, (value,) * len(keys)))

    @rule(
        number=st.integers(0, 15),
        table=st.sampled_from(tuple(ROW_ITEMS)),
        keys=key_lists,
        start=st.integers(-1, 4),
        length=st.integers(1, 4),
    )
    def intent(self, number: int, table: str, keys: list[int], start: int, length: int) -> None:
        self._give(number, Step("intent", table, tuple(keys), window=(start, start + length)))

    @rule(number=st.integers(0, 15), call=st.sampled_from(("advance_clock", "wait_sync", "wait_futures")))
    def other(self, number: int, call: str) -> None:
        self._give(number, Step(call))

    @rule(events=st.integers(1, 40))
    def let_time_pass(self, events: int) -> None:
        self._guarded(self.job.network.run_events, events)  # type: ignore[union-attr]

    @precondition(lambda self: self.job is not None and not self.failed)
    @invariant()
    def invariants_hold(self) -> None:
        self._guarded(self.program.job.checker.check)

    def teardown(self) -> None:
        if self.job is None:
            return
        try:
            if not self.failed:
                for number in range(len(self.tasks)):
                    self._give(number, None)
                self.job.run()  # a worker is used by one task at a time
                self.program.end()
                self.job.close()
                return
        except BaseException as failure:
            failure.add_note(f"the last events:\n{self.job.history()[-3000:]}")
            self.job.abort()
            raise
        self.job.abort()


JobMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestRandomSteps = JobMachine.TestCase
