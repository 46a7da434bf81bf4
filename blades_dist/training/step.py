"""One bi-level step, in order; knows neither Ray nor DeepSpeed.

1. train forwards (the real ones: BatchNorm statistics move here and nowhere else), losses, logit gradients
2. outer step, every n-th time: gradient at the present lambda -> look-ahead -> v on validation photographs there ->
   <g_i, P^T v> by the configured route -> hypergradient -> lambda
3. backward with the new lambda, and the optimiser's step

With ``reuse_gradient`` the backward of 3 comes before 2, which takes its gradient: one backward less, and a lambda that
acts one step later. Route ``alternating`` takes v before 1, at the present parameters, and runs 1 in forward mode.
Nothing is kept of a step in which anything is not finite: all ranks raise ``NonFinite`` and stand where they stood.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from blades_dist.arithmetic import ieee_fp32
from blades_dist.bilevel import hypergradient
from blades_dist.bilevel.build import TaskWeights
from blades_dist.bilevel.hypergradient import Batch, Columns, Evaluated, Hypergradient, combine, pull_back
from blades_dist.bilevel.lookahead import (
    AdamW,
    Lookahead,
    Params,
    adamw_adjoint,
    adamw_lookahead,
    norm,
    sgd_lookahead,
)
from blades_dist.config import BilevelConfig, LossConfig, TrainConfig
from blades_dist.distributed import World
from blades_dist.losses.fidelity import Fidelity, fidelity, scale_columns
from blades_dist.models.batchnorm import set_statistics, statistics, still_statistics
from blades_dist.models.dual import forget, remember
from blades_dist.models.joint import JointModel
from blades_dist.tasks import TaskSet
from blades_dist.training.guard import Culprits, NonFinite, find_culprits
from blades_dist.training.sample import Sample


class Engine(Protocol):
    """What the loop needs of an optimiser around the model."""

    module: nn.Module

    def forward(self, images: Tensor, direction: Params | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits (B, C) with their graph, and their derivative along ``direction`` if one is given."""

    def backward(self, logits: Tensor, cotangent: Tensor) -> None:
        """Accumulates the global gradient: the sum over ranks of each rank's pull-back of its cotangent."""

    def gradient(self) -> Params:
        """The accumulated global gradient before clipping, whole on every rank; to be read, not written."""

    def gradient_norm(self) -> float:
        """Norm of the accumulated global gradient before clipping; equal on all ranks, not finite if any part is."""

    def adamw(self) -> AdamW:
        """The optimiser's state before the step, whole on every rank."""

    def step(self, lr: float) -> None:
        """Clips and applies the accumulated gradient."""

    def discard(self) -> None:
        """Forgets the accumulated gradient."""


@dataclass(frozen=True)
class StepResult:
    """``train_losses`` and ``val_losses`` (K,) global; the latter, and ``hypergradient``, None without outer step."""

    train_losses: Tensor
    val_losses: Tensor | None
    hypergradient: Tensor | None
    gradient_norm: float


@dataclass(frozen=True)
class Pass:
    """One micro-batch after its train forward; ``logits`` (B, C) still have their graph."""

    sample: Sample
    logits: Tensor
    result: Fidelity
    tangent: Tensor | None


@dataclass
class BilevelStep:
    """The step of DESIGN section 4 with everything it needs but the batches.

    ``keep_results``: the exact route keeps the train forward's layer results for its forward-mode pass, which then
    costs a third less; they take about as much memory as the activations that a backward needs.
    """

    engine: Engine
    tasks: TaskSet
    weights: TaskWeights
    loss: LossConfig
    bilevel: BilevelConfig
    train: TrainConfig
    world: World
    keep_results: bool = True

    def __post_init__(self) -> None:
        self._columns = Columns.of(self.tasks, next(self.engine.module.parameters()).device)
        self._statistics = statistics(self.engine.module)  # as they were before the step
        self._route = hypergradient.ROUTES[self.bilevel.route]
        if self.bilevel.route == "finite_difference":
            self._route = partial(hypergradient.finite_difference, epsilon=self.bilevel.epsilon)

    def wants_validation(self, step: int) -> bool:
        """Whether 0-based ``step`` takes an outer step (and so a validation batch)."""
        return self.weights.learns and step % self.bilevel.every == 0

    def run(self, step: int, lr: float, train: Sequence[Sample], val: Sample | None) -> StepResult:
        """Takes 0-based ``step`` on the mean loss of the micro-batches ``train``; without ``val`` no outer step.

        Raises:
            NonFinite: a loss, a gradient or a task weight is not finite. Parameters, buffers, the optimiser, lambda
                and its history are bitwise as before, on all ranks.
            ValueError: several micro-batches and an outer step that does not reuse the gradient.
        """
        if val is not None and len(train) > 1 and not self.bilevel.reuse_gradient:
            raise ValueError("an outer step over several micro-batches needs bilevel.reuse_gradient")
        with self._or_as_before():
            losses, outer = self._gradient(step, lr, train, val)
            norm = self.engine.gradient_norm()
            self._check_gradient(step, norm, train)
            self.engine.step(lr)
            self.weights.observe(losses, step + 1)
        return StepResult(losses, outer.val_losses if outer else None, outer.value if outer else None, norm)

    def probe(self, lr: float, train: Sequence[Sample], val: Sample) -> Hypergradient:
        """What an outer step would find here; parameters, buffers, the optimiser and lambda stay as they are."""
        weights, self._statistics = self.weights.snapshot(), statistics(self.engine.module)
        try:
            found = self._gradient(0, lr, train, val)[1]
        finally:
            self._put_back(weights)
        assert found is not None
        return found

    def _gradient(
        self, step: int, lr: float, train: Sequence[Sample], val: Sample | None
    ) -> tuple[Tensor, Hypergradient | None]:
        """Leaves the step's gradient in the engine, and lambda moved; gives the train losses and the outer step."""
        early = val is None or self.bilevel.reuse_gradient  # the backward takes the lambda that there is
        direction = val_losses = None
        if val is not None and self.bilevel.route == "alternating":
            with self._aside():
                direction, val_losses = self._present_direction(step, val)
        passes = self._train_passes(step, train, direction, early, val is not None)
        losses = torch.stack([part.result.losses for part in passes]).mean(0)
        if val is None:
            return losses, None
        with self._aside():
            if direction is None:
                direction, val_losses = self._ahead_direction(step, lr, passes, early, val)
            evaluated = [Evaluated(self._batch(part.sample), part.result.gradient, part.tangent) for part in passes]
            value = -lr * self._route(evaluated, self._params(), direction, self._columns, self.world)
        assert val_losses is not None
        self._move_weights(step, value, [*train, val])
        if not early:
            self.engine.backward(passes[0].logits, self._weighted(passes[0].result))
        return losses, Hypergradient(value, val_losses)

    def _train_passes(
        self, step: int, train: Sequence[Sample], direction: Params | None, early: bool, outer: bool
    ) -> list[Pass]:
        keep = outer and self.keep_results and self.bilevel.route == "exact" and len(train) == 1
        passes = []
        with remember(self.engine.module) if keep else nullcontext():
            for sample in train:
                logits, tangent = self.engine.forward(sample.images, direction)
                result = fidelity(logits, sample.labels, self.tasks, self.loss, self.world)
                self._check_losses(step, "training loss", result.losses, sample)
                if early:
                    self.engine.backward(logits, self._weighted(result) / len(train))
                passes.append(Pass(sample, logits, result, tangent))
        return passes

    def _present_direction(self, step: int, val: Sample) -> tuple[Params, Tensor]:
        """v at the present parameters, for route alternating. Clipping, which it cannot know yet, is left out."""
        module = self.engine.module
        # The train forward comes at the same parameters: what the prompts gave here need not be computed again.
        with remember(module.text) if self.keep_results and isinstance(module, JointModel) else nullcontext():
            v, losses = self._v(self._params(), val)
        self._check_losses(step, "validation loss", losses, val)
        if self.bilevel.lookahead == "adamw":
            state = self.engine.adamw()
            if state.step:  # before the first step there is no gradient to stand for this one's
                mean = {name: value / (1 - state.betas[0] ** state.step) for name, value in state.exp_avg.items()}
                v = adamw_adjoint(v, mean, state)
        return v, losses

    def _ahead_direction(
        self, step: int, lr: float, passes: list[Pass], early: bool, val: Sample
    ) -> tuple[Params, Tensor]:
        """P^T v at the look-ahead."""
        params = self._params()
        if early:
            gradient = self.engine.gradient()
            self._check_gradient(step, self.engine.gradient_norm(), [part.sample for part in passes])
        else:
            share = pull_back(passes[0].logits, self._weighted(passes[0].result), params, keep_graph=True)
            gradient = combine(share, self.world, self.bilevel.sync)
        ahead = self._lookahead(params, gradient, lr)
        v, losses = self._v(ahead.point, val)
        if not bool(losses.isfinite().all()):
            size = self.world.sum(norm(gradient.values()))
            self._check_gradient(step, float(size), [part.sample for part in passes])
        self._check_losses(step, "validation loss", losses, val)
        return ahead.adjoint(v), losses

    def _lookahead(self, params: Params, gradient: Params, lr: float) -> Lookahead:
        decay, clip = self.train.weight_decay, self.train.clip_norm
        if self.bilevel.lookahead == "adamw":
            return adamw_lookahead(params, gradient, lr, decay, self.engine.adamw(), clip)
        return sgd_lookahead(params, gradient, lr, decay, clip)

    def _v(self, point: Params, val: Sample) -> tuple[Params, Tensor]:
        return hypergradient.outer_direction(self._batch(val), point, self._columns, self.world, self.bilevel.sync)

    def _params(self) -> Params:
        return {name: value for name, value in self.engine.module.named_parameters() if value.requires_grad}

    def _batch(self, sample: Sample) -> Batch:
        def forward(params: Params) -> Tensor:
            return functional_call(self.engine.module, params, (sample.images,))

        def loss(logits: Tensor) -> Fidelity:
            return fidelity(logits, sample.labels, self.tasks, self.loss, self.world)

        return Batch(forward, loss)

    def _weighted(self, result: Fidelity) -> Tensor:
        return scale_columns(result.gradient, self.weights.value, self._columns.task)

    def _move_weights(self, step: int, value: Tensor, samples: Sequence[Sample]) -> None:
        finite = value.isfinite().tolist()
        if not all(finite):
            raise self._failure(step, "hypergradient", samples, tasks=[not ok for ok in finite])
        self.weights.step(value.cpu(), step + 1)

    def _check_losses(self, step: int, what: str, losses: Tensor, sample: Sample) -> None:
        # Losses are global, so every rank sees the same and all stop together; so are norms and hypergradients.
        finite = losses.isfinite().tolist()
        if not all(finite):
            raise self._failure(step, what, [sample], tasks=[not ok for ok in finite])

    def _check_gradient(self, step: int, norm: float, samples: Sequence[Sample]) -> None:
        if not math.isfinite(norm):
            raise self._failure(step, "gradient", samples)

    def _failure(
        self, step: int, what: str, samples: Sequence[Sample], tasks: Sequence[bool] | None = None
    ) -> NonFinite:
        """The exception to raise, after finding out who is to blame; every rank calls."""
        set_statistics(self.engine.module, self._statistics)  # rows are judged by them, and this step's may be spoilt
        found = [self._culprits(sample, gradient=tasks is None) for sample in samples]
        if tasks is None:
            tasks = [any(flags) for flags in zip(*(culprits.tasks for culprits in found), strict=True)]
        names = [name for name, bad in zip(self.tasks.names, tasks, strict=True) if bad]
        return NonFinite(step, what, names, [name for culprits in found for name in culprits.ids])

    def _culprits(self, sample: Sample, gradient: bool) -> Culprits:
        cotangent = None
        if gradient:
            with still_statistics(self.engine.module), torch.no_grad():
                logits = self.engine.module(sample.images)
            cotangent = self._weighted(fidelity(logits, sample.labels, self.tasks, self.loss, self.world))
        return find_culprits(self.engine.module, sample, cotangent, self._columns, self.world)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Inside, forwards leave no trace: no BatchNorm statistics and no random number of the run."""
        device = self._columns.task.device
        devices = [device] if device.type == "cuda" else []
        # Differences of losses, and sums that decide lambda's direction, keep their digits only in fp32 or wider.
        wide = self.bilevel.route == "finite_difference"
        with still_statistics(self.engine.module), torch.random.fork_rng(devices), precise(self.engine.module, wide):
            yield

    @contextmanager
    def _or_as_before(self) -> Iterator[None]:
        weights, self._statistics = self.weights.snapshot(), statistics(self.engine.module)
        try:
            yield
        except FloatingPointError:
            self._put_back(weights)
            raise
        forget(self.engine.module)

    def _put_back(self, weights: Any) -> None:
        self.weights.restore(weights)
        set_statistics(self.engine.module, self._statistics)
        self.engine.discard()
        forget(self.engine.module)


@contextmanager
def precise(module: nn.Module, on: bool) -> Iterator[None]:
    """Inside, if ``on``, a ``JointModel`` computes in its parameters' type, without autocast and without TF32."""
    if not (on and isinstance(module, JointModel)):
        yield
        return
    before, module.autocast_dtype = module.autocast_dtype, None
    try:
        with ieee_fp32():
            yield
    finally:
        module.autocast_dtype = before
