"""What a step computes on the device, from batches to one short vector of numbers that decide its course.

Nothing here waits for the device or reads a number from it: a GPU works these parts off in one go, and ``cuda_graphs``
can record them. Both are functions of the samples, the model's state, ``numbers`` and the engine's gradient.

1. ``look``: train forwards (the real ones: BatchNorm statistics move here and nowhere else), losses, logit gradients;
   on an outer step gradient at the present lambda -> look-ahead -> v on validation photographs there -> <g_i, P^T v> by
   the configured route -> hypergradient. Steps without an outer one, or that reuse the gradient, have their backward
   here.
2. ``backward`` with the new lambda, for the others.

Route ``alternating`` takes v before the train forward, at the present parameters, and runs that in forward mode.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from blades_dist.arithmetic import ieee_fp32
from blades_dist.bilevel import hypergradient
from blades_dist.bilevel.functional import Functional
from blades_dist.bilevel.hypergradient import Columns, Objective, TrainForward, combine, pull_back
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
from blades_dist.models.batchnorm import still_statistics
from blades_dist.models.dual import remember
from blades_dist.models.joint import JointModel
from blades_dist.tasks import TaskSet
from blades_dist.training.sample import Sample


class Engine(Protocol):
    """What a step needs of an optimiser around the model."""

    module: nn.Module

    def forward(self, images: Tensor, direction: Params | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits (B, C) with their graph, and their derivative along ``direction`` if one is given."""

    def backward(self, logits: Tensor, cotangent: Tensor) -> None:
        """Accumulates the global gradient: the sum over ranks of each rank's pull-back of its cotangent."""

    def gradient(self) -> Params:
        """The accumulated global gradient before clipping, whole on every rank; to be read, not written."""

    def gradient_norm(self) -> Tensor:
        """Norm of the accumulated global gradient before clipping, a scalar on the device; equal on all ranks, not
        finite if any part is."""

    def adamw(self) -> AdamW:
        """The optimiser's state before the step, whole on every rank."""

    def step(self, lr: float) -> None:
        """Clips and applies the accumulated gradient."""

    def discard(self) -> None:
        """Forgets the accumulated gradient."""


@dataclass(frozen=True)
class Look:
    """``report``: train losses (K), norm of the gradient, and on an outer step validation losses (K) and hypergradient
    (K), in one tensor. Where a backward with the new lambda is ``due``, ``forward`` is what it is to be taken of."""

    report: Tensor
    due: bool = False
    forward: TrainForward | None = None


@dataclass(frozen=True)
class OuterPoint:
    """P^T v, the K validation losses where v was taken, and the norm of the gradient that led there."""

    direction: Params
    val_losses: Tensor
    gradient_norm: Tensor


class DevicePart:
    """Both parts, for one engine and configuration; ``columns`` and ``params`` are the model's, found once."""

    def __init__(
        self,
        engine: Engine,
        tasks: TaskSet,
        loss: LossConfig,
        bilevel: BilevelConfig,
        train: TrainConfig,
        world: World,
        keep_results: bool,
    ) -> None:
        self.engine, self.tasks, self.loss, self.world = engine, tasks, loss, world
        self.bilevel, self.train, self.keep_results = bilevel, train, keep_results
        self._call = Functional(engine.module)
        self.params = self._call.params
        self.device = next(iter(self.params.values())).device
        self.columns = Columns.of(tasks, self.device)
        self.route = hypergradient.ROUTES[bilevel.route]
        if bilevel.route == "finite_difference":
            self.route = partial(hypergradient.finite_difference, epsilon=bilevel.epsilon)
        # lambda and alpha where the device reads them, and the memory that they are sent from without waiting.
        self._numbers = torch.zeros(len(tasks) + 1, dtype=torch.float64, device=self.device)
        self._sent = torch.zeros(len(tasks) + 1, dtype=torch.float64, pin_memory=self.device.type == "cuda")

    def send(self, weights: Tensor, lr: float) -> None:
        """Tells the device lambda (K,) and alpha. Not again before something of this step has been read back."""
        self._sent[:-1] = weights
        self._sent[-1] = lr
        self._numbers.copy_(self._sent, non_blocking=True)

    def look(self, train: Sequence[Sample], val: Sample | None) -> Look:
        """Part 1; ``val`` None: no outer step."""
        backward_first = val is None or self.bilevel.reuse_gradient
        point = None
        if val is not None and self.bilevel.route == "alternating":
            with self._aside():
                point = self.present_point(val)
        forwards = self._train_forwards(train, point.direction if point else None, backward_first, val is not None)
        losses = torch.stack([part.found.losses for part in forwards]).mean(0)
        size = self.engine.gradient_norm() if backward_first else None
        if val is None:
            assert size is not None
            return Look(torch.cat((losses, size.reshape(1).to(losses))))
        with self._aside():
            if point is None:
                point = self._point_ahead(forwards, backward_first, val)
            products = self.route(forwards, self.params, point.direction, self.columns, self.world)
        if size is None:
            size = point.gradient_norm
        parts = (losses, size.reshape(1).to(losses), point.val_losses, -self._lr * products)
        return Look(torch.cat(parts)) if backward_first else Look(torch.cat(parts), True, forwards[0])

    def backward(self, look: Look) -> Tensor:
        """Part 2, of a ``look`` that left it to be done; the norm of its gradient."""
        assert look.forward is not None
        self.engine.backward(look.forward.logits, self.weighted(look.forward.found))
        return self.engine.gradient_norm()

    def objective(self, sample: Sample) -> Objective:
        """The losses on ``sample`` as functions of the parameters."""
        return Objective(
            lambda params: self._call(params, sample.images),
            lambda logits: fidelity(logits, sample.labels, self.tasks, self.loss, self.world),
        )

    def weighted(self, found: Fidelity) -> Tensor:
        """The logits' cotangent (B, C) under the present lambda."""
        return scale_columns(found.gradient, self._numbers[:-1], self.columns.task)

    def present_point(self, val: Sample) -> OuterPoint:
        """v at the present parameters, for route alternating. Clipping, which it cannot know yet, is left out."""
        module = self.engine.module
        # The train forward comes at the same parameters: what the prompts gave here need not be computed again.
        with remember(module.text) if self.keep_results and isinstance(module, JointModel) else nullcontext():
            v, losses = self._v(self.params, val)
        if self.bilevel.lookahead == "adamw":
            state = self.engine.adamw()
            if isinstance(state.step, Tensor):  # before the first step there is no gradient to stand for this one's
                v = adamw_adjoint(v, state.mean, state)
        return OuterPoint(v, losses, losses.new_zeros(()))

    @property
    def _lr(self) -> Tensor:
        return self._numbers[-1]

    def _train_forwards(
        self, train: Sequence[Sample], direction: Params | None, backward: bool, outer: bool
    ) -> list[TrainForward]:
        keep = outer and self.keep_results and self.bilevel.route == "exact" and len(train) == 1
        forwards = []
        with remember(self.engine.module) if keep else nullcontext():
            for sample in train:
                logits, tangent = self.engine.forward(sample.images, direction)
                objective = self.objective(sample)
                found = objective.loss(logits)
                if backward:
                    self.engine.backward(logits, self.weighted(found) / len(train))
                forwards.append(TrainForward(objective, logits, found, tangent))
        return forwards

    def _point_ahead(self, forwards: list[TrainForward], backward_done: bool, val: Sample) -> OuterPoint:
        """P^T v at the look-ahead, along the gradient that the engine has or one that is taken for it."""
        if backward_done:
            gradient = self.engine.gradient()
        else:
            (part,) = forwards
            share = pull_back(part.logits, self.weighted(part.found), self.params, keep_graph=True)
            gradient = combine(share, self.world, self.bilevel.sync)
        ahead = self._lookahead(gradient)
        v, losses = self._v(ahead.point, val)
        return OuterPoint(ahead.adjoint(v), losses, norm(gradient.values()))

    def _lookahead(self, gradient: Params) -> Lookahead:
        decay, clip = self.train.weight_decay, self.train.clip_norm
        if self.bilevel.lookahead == "adamw":
            return adamw_lookahead(self.params, gradient, self._lr, decay, self.engine.adamw(), clip)
        return sgd_lookahead(self.params, gradient, self._lr, decay, clip)

    def _v(self, point: Params, val: Sample) -> tuple[Params, Tensor]:
        return hypergradient.outer_direction(self.objective(val), point, self.columns, self.world, self.bilevel.sync)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Inside, forwards leave no trace: no BatchNorm statistics and no random number of the run."""
        # A graph that is being recorded cannot save the device's generator; no layer of these models draws from it.
        draws = self.device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
        # Differences of losses, and sums that decide lambda's direction, keep their digits only in fp32 or wider.
        wide = self.bilevel.route == "finite_difference"
        module = self.engine.module
        with still_statistics(module), torch.random.fork_rng([self.device] if draws else []), precise(module, wide):
            yield


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
