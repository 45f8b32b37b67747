"""Row optimisers: what ``create_table(optimizer=...)`` takes. Users import them from ``intentpm.optim``.

Each says by its fields what it does with a gradient, and by ``state`` what it keeps of a row. The arithmetic is in
``_native/optimiser_kernels.hpp``.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from intentpm.foundation.errors import OptimizerError

WeightDecayMode = Literal["none", "l2", "decoupled"]
Rounding = Literal["nearest", "stochastic"]
BiasCorrection = Literal["row", "global"]

PER_ITEM = "per item"
"""State with the shape of a row."""
PER_ROW = "per row"
"""State that is one number."""
ROUNDING = "rounding"
"""State of stochastic rounding: with which number of the row its next random bits are made."""
COUNTS = ("step", ROUNDING)
"""State that is uint32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOptimiser:
    """What all of them take. One is a value: equal arguments make equal optimisers. Not made by itself.

    ``g`` is the gradient of a row, ``w`` its weights. In this order: ``g`` is clipped, L2 decay is added, the step is
    taken (decoupled decay with it), ``w`` is scaled down to ``max_norm``.
    """

    lr: float
    """Learning rate, >= 0; ``push_grad(..., lr=)`` takes another for one call."""
    weight_decay: float = 0.0
    """Of the rows that are stepped, when they are: a row without gradients does not decay."""
    weight_decay_mode: WeightDecayMode = "none"
    """"l2": ``g += weight_decay * w``. "decoupled": ``w -= lr * weight_decay * w`` besides the step."""
    max_norm: float | None = None
    """After a step, a row whose L2 norm is above this is scaled down to it."""
    clip_value: float | None = None
    """Every number of a gradient is limited to [-clip_value, clip_value]."""
    clip_norm: float | None = None
    """A row's gradient whose L2 norm is above this is scaled down to it; after ``clip_value``."""
    rounding: Rounding = "nearest"
    """Of weights of 16 bits after a step. "stochastic": up or down at random, with the number itself as the mean, so
    that small steps add up; a row keeps ``rounding`` for it, one number more."""
    rounding_seed: int = 0
    """Of stochastic rounding, in [0, 2^64): the same seed and the same steps of a row give the same bits."""

    rule: ClassVar[int] = 0
    """Of the kernel: StepRule of optimiser_kernels.hpp."""
    state: ClassVar[tuple[tuple[str, str], ...]] = ()
    """(name, PER_ITEM or PER_ROW) of what is kept per row, as it lies behind the weights."""

    def __post_init__(self) -> None:
        if type(self) is RowOptimiser:
            raise TypeError("choose one of SGD, Adagrad, RowwiseAdagrad, Adam, PartialRowwiseAdam")
        self._check("lr", is_number(self.lr) and self.lr >= 0, "a number >= 0")
        for name in ("clip_value", "clip_norm", "max_norm"):
            value = getattr(self, name)
            self._check(name, value is None or (is_number(value) and value > 0), "a number > 0, or None")
        self._check("weight_decay_mode", self.weight_decay_mode in get_args(WeightDecayMode), "none, l2 or decoupled")
        self._check("rounding", self.rounding in get_args(Rounding), "nearest or stochastic")
        seed = self.rounding_seed
        is_seed = isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 1 << 64
        self._check("rounding_seed", is_seed, "a whole number in [0, 2^64)")
        if seed and not self.rounds_at_random:
            raise OptimizerError(
                f'{type(self).__name__}: rounding_seed={seed!r} is used by rounding="stochastic" alone'
            )
        self._check("weight_decay", is_number(self.weight_decay) and self.weight_decay >= 0, "a number >= 0")
        if (self.weight_decay_mode == "none") != (self.weight_decay == 0):
            raise OptimizerError(
                f"{type(self).__name__}: weight_decay={self.weight_decay!r} and weight_decay_mode="
                f"{self.weight_decay_mode!r} contradict each other: give both, or neither"
            )

    @property
    def rounds_at_random(self) -> bool:
        """Whether weights are rounded so."""
        return self.rounding == "stochastic"

    @property
    def corrects_by_calls(self) -> bool:
        """Whether the bias of moments is corrected by a count of calls, else by that of the row's steps."""
        return bool(getattr(self, "bias_correction", "row") == "global")

    def rate_of_call(self, lr: float, count: int) -> float:
        """What stands for the learning rate in the ``count``-th call, of those that correct by calls."""
        beta1, beta2 = getattr(self, "betas", (0.0, 0.0))
        return float(lr * math.sqrt(1 - beta2**count) / (1 - beta1**count))

    @property
    def kept_state(self) -> tuple[tuple[str, str], ...]:
        """``state``, and what rounding keeps behind it."""
        return (*self.state, (ROUNDING, PER_ROW)) if self.rounds_at_random else self.state

    def _check(self, name: str, good: bool, needs: str) -> None:
        if not good:
            raise OptimizerError(f"{type(self).__name__}: {name}={getattr(self, name)!r}: needs {needs}")

    def _check_eps(self, eps: Any) -> None:
        self._check("eps", is_number(eps) and eps > 0, "a number > 0")

    def _check_betas(self, betas: Any) -> None:
        pair = isinstance(betas, tuple) and len(betas) == 2 and all(is_number(beta) and 0 <= beta < 1 for beta in betas)
        self._check("betas", pair, "a tuple of two numbers in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SGD(RowOptimiser):
    """``w -= lr * g``. Keeps nothing per row."""

    lr: float = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Adagrad(RowOptimiser):
    """``G += g^2; w -= lr * g / (sqrt(G) + eps)`` (Duchi, Hazan, Singer 2011).

    Keeps ``sum`` (G), as many numbers as a row has.
    """

    lr: float = 1e-2
    eps: float = 1e-10
    initial_accumulator: float = 0.0
    """G before the first step, >= 0."""

    rule: ClassVar[int] = 1
    state: ClassVar[tuple[tuple[str, str], ...]] = (("sum", PER_ITEM),)

    def __post_init__(self) -> None:
        super(Adagrad, self).__post_init__()
        self._check_eps(self.eps)
        _check_initial_accumulator(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowwiseAdagrad(RowOptimiser):
    """Adagrad with one accumulator per row: ``G += mean(g^2)``, as in DLRM, FBGEMM. Keeps ``sum`` (G), one number."""

    lr: float = 1e-2
    eps: float = 1e-10
    initial_accumulator: float = 0.0
    """G before the first step, >= 0."""

    rule: ClassVar[int] = 2
    state: ClassVar[tuple[tuple[str, str], ...]] = (("sum", PER_ROW),)

    def __post_init__(self) -> None:
        super(RowwiseAdagrad, self).__post_init__()
        self._check_eps(self.eps)
        _check_initial_accumulator(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam(RowOptimiser):
    """Adam (Kingma, Ba 2015); with decoupled decay AdamW.

    The moments of a row change when it is stepped, and their bias is corrected by the count of its own steps. Keeps
    ``exp_avg`` and ``exp_avg_sq``, each as many numbers as a row has, and ``step``.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = field(default=(0.9, 0.999))
    eps: float = 1e-8
    bias_correction: BiasCorrection = "row"
    """Of the moments, by which count of steps: "row", those of the row; "global", the worker's calls of ``push_grad``
    on the table, as ``torch.optim.SparseAdam``, whose formula it is then: ``eps`` is added before the correction."""

    rule: ClassVar[int] = 3
    state: ClassVar[tuple[tuple[str, str], ...]] = (("exp_avg", PER_ITEM), ("exp_avg_sq", PER_ITEM), ("step", PER_ROW))

    def __post_init__(self) -> None:
        super(Adam, self).__post_init__()
        self._check_eps(self.eps)
        self._check_betas(self.betas)
        _check_bias_correction(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialRowwiseAdam(RowOptimiser):
    """Adam with one second moment per row, of ``mean(g^2)``, as in FBGEMM.

    Keeps ``exp_avg``, as many numbers as a row has, ``exp_avg_sq`` and ``step``, one number each.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = field(default=(0.9, 0.999))
    eps: float = 1e-8
    bias_correction: BiasCorrection = "row"
    """Of the moments, by which count of steps: "row", those of the row; "global", the worker's calls of ``push_grad``
    on the table, as ``torch.optim.SparseAdam``, whose formula it is then: ``eps`` is added before the correction."""

    rule: ClassVar[int] = 4
    state: ClassVar[tuple[tuple[str, str], ...]] = (("exp_avg", PER_ITEM), ("exp_avg_sq", PER_ROW), ("step", PER_ROW))

    def __post_init__(self) -> None:
        super(PartialRowwiseAdam, self).__post_init__()
        self._check_eps(self.eps)
        self._check_betas(self.betas)
        _check_bias_correction(self)


def is_number(value: Any) -> bool:
    """A finite real number, and no bool."""
    try:
        return not isinstance(value, bool) and math.isfinite(float(value)) and not isinstance(value, str)
    except (TypeError, ValueError):
        return False


def _check_initial_accumulator(optimiser: Adagrad | RowwiseAdagrad) -> None:
    value = optimiser.initial_accumulator
    optimiser._check("initial_accumulator", is_number(value) and value >= 0, "a number >= 0")


def _check_bias_correction(optimiser: Adam | PartialRowwiseAdam) -> None:
    way = optimiser.bias_correction
    optimiser._check("bias_correction", way in get_args(BiasCorrection), "row or global")
    if way == "global" and optimiser.weight_decay_mode == "decoupled":
        raise OptimizerError(
            f'{type(optimiser).__name__}: bias_correction="global" changes the learning rate, by which decoupled decay '
            'goes: use bias_correction="row", or weight_decay_mode="l2"'
        )


def check_optimizer(where: str, optimizer: Any) -> None:
    """What ``create_table`` was given. Raises OptimizerError."""
    if optimizer is not None and not isinstance(optimizer, RowOptimiser):
        raise OptimizerError(f"{where}: optimizer={optimizer!r}: pass one of intentpm.optim, as in Adagrad(lr=0.1)")
