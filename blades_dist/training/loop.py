"""One bi-level step, in order; knows neither Ray nor DeepSpeed.

1. train forward (the real one: BatchNorm statistics move here and nowhere else), losses, logit gradient
2. outer step, every n-th time: gradient at the present lambda -> look-ahead -> validation gradient there -> one
   forward-mode pass of the train batch -> hypergradient -> lambda
3. backward of the same train graph with the new lambda, and the optimiser's step
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from blades_dist.bilevel import hypergradient
from blades_dist.bilevel.lookahead import Params, sgd_lookahead
from blades_dist.bilevel.reduce import World
from blades_dist.bilevel.weights import TaskWeights
from blades_dist.config import BilevelConfig, LossConfig, ManipulateConfig
from blades_dist.losses.fidelity import Fidelity, fidelity
from blades_dist.manipulate import draw, manipulate
from blades_dist.models.batchnorm import still_statistics
from blades_dist.tasks import TAGS, TaskSet


class Engine(Protocol):
    """What the loop needs of an optimiser around the model."""

    module: nn.Module

    def forward(self, images: Tensor) -> Tensor: ...

    def backward(self, logits: Tensor, cotangent: Tensor) -> None:
        """Accumulates the global gradient: the sum over ranks of each rank's pull-back of its cotangent."""

    def step(self, lr: float) -> float:
        """Applies the accumulated gradient; returns its norm before clipping (nan if unknown)."""


@dataclass(frozen=True)
class Sample:
    """A batch on the device, ready for the model: ``images`` (B, 3, S, S) float 0..1, ``labels`` (B, K - 1 + R)."""

    images: Tensor
    labels: Tensor
    ids: list[str]


@dataclass(frozen=True)
class StepResult:
    """``train_losses`` and ``val_losses`` (K,) global; the latter, and ``hypergradient``, None without outer step."""

    train_losses: Tensor
    val_losses: Tensor | None
    hypergradient: Tensor | None
    gradient_norm: float


def prepare(
    images: Tensor,
    landmarks: Tensor,
    labels: Tensor,
    ids: list[str],
    tasks: TaskSet,
    config: ManipulateConfig,
    seed: tuple[int, int, int],
    world: World,
) -> Sample:
    """uint8 photographs to a manipulated, labelled batch on their device.

    ``labels`` (B, len(TAGS)) are the records' tags. The decisions depend on ``seed`` (run, stream, step) and the
    row's place in the global batch, not on the number of workers.
    """
    generator = torch.Generator().manual_seed(_mix(seed))
    rows = slice(world.rank * len(images), (world.rank + 1) * len(images))
    decisions = draw(world.size * len(images), config, generator).rows(rows)
    own = labels[:, [TAGS.index(task.tag) for task in tasks.tasks if task.tag is not None]]
    joined = torch.cat((own, decisions.labels.to(own.device)), dim=1)
    return Sample(manipulate(images.float() / 255, landmarks.float(), decisions), joined, ids)


@dataclass
class BilevelStep:
    """The step of DESIGN section 4 with everything it needs but the batches."""

    engine: Engine
    tasks: TaskSet
    weights: TaskWeights
    loss: LossConfig
    bilevel: BilevelConfig
    weight_decay: float
    world: World

    def __post_init__(self) -> None:
        device = next(self.engine.module.parameters()).device
        self._task_of_column = torch.tensor(self.tasks.task_of_column, device=device)

    def wants_validation(self, step: int) -> bool:
        """Whether 0-based ``step`` takes an outer step (and so a validation batch)."""
        return self.bilevel.weighting == "bilevel" and step % self.bilevel.every == 0

    def run(self, step: int, lr: float, train: Sample, val: Sample | None) -> StepResult:
        """Takes 0-based ``step``; ``val`` None leaves lambda as it is.

        Raises:
            FloatingPointError: a loss or the hypergradient is not finite, before any parameter or lambda moved.
        """
        logits = self.engine.forward(train.images)
        result = fidelity(logits, train.labels, self.tasks, self.loss, self.world)
        self._check(step, "training", result)
        outer = None
        if val is not None:
            outer = self._outer(lr, logits, result, train, val)
            self._check(step, "validation", outer.val_losses)
            self.weights.step(outer.value.cpu(), step + 1)
        self.engine.backward(logits, self._weighted(result))
        norm = self.engine.step(lr)
        return StepResult(result.losses, outer.val_losses if outer else None, outer.value if outer else None, norm)

    def _outer(
        self, lr: float, logits: Tensor, result: Fidelity, train: Sample, val: Sample
    ) -> hypergradient.Hypergradient:
        module = self.engine.module
        params: Params = {name: value for name, value in module.named_parameters() if value.requires_grad}
        batches = [self._batch(sample) for sample in (train, val)]
        with still_statistics(module):
            inner = hypergradient.pull_back(logits, self._weighted(result), params, self.world, keep_graph=True)
            lookahead = sgd_lookahead(params, inner, lr, self.weight_decay)
            direction, losses = hypergradient.outer_direction(
                batches[1], lookahead, self.tasks.proxy, self._task_of_column, self.world
            )
            if self.bilevel.route == "exact":
                value = hypergradient.exact(
                    batches[0],
                    result.gradient,
                    params,
                    direction,
                    lr,
                    self._task_of_column,
                    len(self.tasks),
                    self.world,
                )
            else:
                value = hypergradient.finite_difference(batches[0], params, direction, lr)
        return hypergradient.Hypergradient(value, losses)

    def _batch(self, sample: Sample) -> hypergradient.Batch:
        def forward(params: Params) -> Tensor:
            return functional_call(self.engine.module, params, (sample.images,))

        def loss(logits: Tensor) -> Fidelity:
            return fidelity(logits, sample.labels, self.tasks, self.loss, self.world)

        return hypergradient.Batch(forward, loss)

    def _weighted(self, result: Fidelity) -> Tensor:
        return hypergradient.weighted(result.gradient, self.weights.value, self._task_of_column)

    def _check(self, step: int, what: str, result: Fidelity | Tensor) -> None:
        # Losses are global, so every rank sees the same and all stop together.
        losses = result.losses if isinstance(result, Fidelity) else result
        finite = torch.isfinite(losses).tolist()
        if not all(finite):
            bad = ", ".join(name for name, ok in zip(self.tasks.names, finite, strict=True) if not ok)
            raise FloatingPointError(f"step {step}: {what} loss of {bad} is not finite; no state was changed")


def _mix(seed: tuple[int, int, int]) -> int:
    """One 63-bit generator seed of three numbers; neighbouring steps land far apart."""
    value = 0
    for part in seed:
        value = (value * 6364136223846793005 + part + 1442695040888963407) % 2**64
    return value >> 1
