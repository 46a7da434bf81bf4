"""One bi-level step, in order; knows neither Ray nor DeepSpeed.

1. ``DevicePart.look``: train forwards and losses; every n-th step also the hypergradient of lambda
2. what it found, read from the device in one go, and judged
3. lambda moves; then the backward with the new lambda, and the optimiser's step

With ``reuse_gradient`` the backward is part of 1, which takes its gradient: one backward less, and a lambda that acts
one step later. The host then waits for the device once a step; where the backward takes the new lambda, which is the
host's to move, a second time. Nothing is kept of a step in which anything is not finite: all ranks raise ``NonFinite``
and stand where they stood.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from blades_dist.bilevel.build import TaskWeights
from blades_dist.bilevel.task_weights import Snapshot
from blades_dist.config import BilevelConfig, LossConfig, TrainConfig
from blades_dist.distributed import World
from blades_dist.losses.fidelity import fidelity
from blades_dist.models.batchnorm import set_statistics, statistics, still_statistics
from blades_dist.models.dual import forget
from blades_dist.tasks import TaskSet
from blades_dist.training.cuda_graphs import recorded
from blades_dist.training.device_part import DevicePart, Engine
from blades_dist.training.guard import Culprits, NonFinite, find_culprits
from blades_dist.training.sample import Sample


@dataclass(frozen=True)
class StepResult:
    """``train_losses`` and ``val_losses`` (K,) global, the latter at the look-ahead, and ``hypergradient`` (K,) = d
    l_val / d lambda: on the CPU, equal on all ranks; the last two None without outer step. ``gradient_norm``: before
    clipping."""

    train_losses: Tensor
    val_losses: Tensor | None
    hypergradient: Tensor | None
    gradient_norm: float


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
        parts = (self.tasks, self.loss, self.bilevel, self.train, self.world, self.keep_results)
        self.part = DevicePart(self.engine, *parts)
        self._device = recorded(self.part, self.train.cuda_graphs)
        self._statistics = statistics(self.engine.module)  # as they were before the step

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
            result = self.prepare(step, lr, train, val)
            with self._as_refusal(step):
                self.weights.observe(result.train_losses, step + 1)
            self.engine.step(lr)
        return result

    def probe(self, lr: float, train: Sequence[Sample], val: Sample) -> StepResult:
        """What an outer step would find here; parameters, buffers, the optimiser and lambda stay as they are."""
        weights, self._statistics = self.weights.snapshot(), statistics(self.engine.module)
        try:
            return self.prepare(0, lr, train, val)
        finally:
            self._put_back(weights)

    def prepare(self, step: int, lr: float, train: Sequence[Sample], val: Sample | None) -> StepResult:
        """All of a step but the optimiser's: leaves the gradient in the engine, and lambda moved."""
        self.part.send(self.weights.value, lr)
        look = self._device.look(train, val)
        found = self._read(look.report)
        self._judge(step, found, look.report, train, val)
        if found.hypergradient is None:
            return found
        with self._as_refusal(step):
            self.weights.step(found.hypergradient, step + 1)
        if not look.due:
            return found
        self.part.send(self.weights.value, lr)
        size = float(self._device.backward(look))
        if not math.isfinite(size):
            raise self._failure(step, "gradient", train)
        return StepResult(found.train_losses, found.val_losses, found.hypergradient, size)

    def _read(self, report: Tensor) -> StepResult:
        """The one transfer from the device: waits until ``look`` is done."""
        count, numbers = len(self.tasks), report.cpu()
        losses, size = numbers[:count], float(numbers[count])
        if len(numbers) == count + 1:
            return StepResult(losses, None, None, size)
        val_losses, value = numbers[count + 1 :].split(count)
        return StepResult(losses, val_losses, value, size)

    def _judge(self, step: int, found: StepResult, report: Tensor, train: Sequence[Sample], val: Sample | None) -> None:
        """Raises NonFinite for what came first of the things that are not finite.

        Losses and hypergradients are global, so every rank sees the same and all stop together.
        """
        self._require_finite(step, "training loss", found.train_losses, train)
        reused = val is None or self.bilevel.reuse_gradient
        if reused and not math.isfinite(found.gradient_norm):
            raise self._failure(step, "gradient", train)
        if val is None:
            return
        assert found.val_losses is not None and found.hypergradient is not None
        if not reused and not bool(found.val_losses.isfinite().all()):
            # The look-ahead's gradient may be a rank's own (sync: local); what spoilt it on one stops all.
            size = float(self.world.sum(report[len(self.tasks)]))
            if not math.isfinite(size):
                raise self._failure(step, "gradient", train)
        self._require_finite(step, "validation loss", found.val_losses, [val])
        self._require_finite(step, "hypergradient", found.hypergradient, [*train, val])

    def _require_finite(self, step: int, what: str, values: Tensor, samples: Sequence[Sample]) -> None:
        finite = values.isfinite().tolist()
        if not all(finite):
            raise self._failure(step, what, samples, tasks=[not ok for ok in finite])

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
            cotangent = self.part.weighted(fidelity(logits, sample.labels, self.tasks, self.loss, self.world))
        return find_culprits(self.engine.module, sample, cotangent, self.part.columns, self.world)

    @contextmanager
    def _as_refusal(self, step: int) -> Iterator[None]:
        """Task weights that overflow or vanish refuse the step as whatever else is not finite does."""
        try:
            yield
        except FloatingPointError as error:
            raise NonFinite(step, "task weights", [], [], reason=str(error)) from error

    @contextmanager
    def _or_as_before(self) -> Iterator[None]:
        weights, self._statistics = self.weights.snapshot(), statistics(self.engine.module)
        try:
            yield
        except FloatingPointError:
            self._put_back(weights)
            raise
        forget(self.engine.module)

    def _put_back(self, weights: Snapshot) -> None:
        self.weights.restore(weights)
        set_statistics(self.engine.module, self._statistics)
        self.engine.discard()
        forget(self.engine.module)
