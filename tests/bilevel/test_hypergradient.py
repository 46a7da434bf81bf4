"""The exact route against differentiating through the look-ahead, on the joint model."""

import torch
from torch.func import functional_call

from blades_dist.bilevel import hypergradient
from blades_dist.bilevel.hypergradient import Batch
from blades_dist.bilevel.lookahead import Params, sgd_lookahead
from blades_dist.bilevel.reduce import World
from blades_dist.config import LossConfig
from blades_dist.losses.fidelity import fidelity
from blades_dist.losses.reference import task_losses
from blades_dist.models.batchnorm import still_statistics
from blades_dist.tasks import task_set
from tests.problems import LR, sample, small_model

TASKS = task_set()
COLUMNS = torch.tensor(TASKS.task_of_column)
DECAY = 1e-3


def test_exact_equals_differentiating_through_the_lookahead() -> None:
    model = small_model().double().train()
    train, val = (sample(0, stream, 6, World(), torch.float64) for stream in (0, 1))
    assert (train.labels == -1).any(), "missing labels must be part of this test"
    params = {name: value for name, value in model.named_parameters()}
    weights = torch.rand(len(TASKS), dtype=torch.float64, requires_grad=True)

    def logits(at: Params, images: torch.Tensor) -> torch.Tensor:
        with still_statistics(model):
            return functional_call(model, at, (images,))

    losses = task_losses(logits(params, train.images), train.labels, TASKS, LossConfig())
    gradients = torch.autograd.grad(weights @ losses, list(params.values()), create_graph=True)
    ahead = {
        name: value - LR * (gradient + DECAY * value)
        for (name, value), gradient in zip(params.items(), gradients, strict=True)
    }
    outer = task_losses(logits(ahead, val.images), val.labels, TASKS, LossConfig())[TASKS.proxy]
    (expected,) = torch.autograd.grad(outer, weights)

    batches = {
        name: Batch(
            lambda at, images=part.images: logits(at, images),
            lambda z, labels=part.labels: fidelity(z, labels, TASKS, LossConfig(), World()),
        )
        for name, part in (("train", train), ("val", val))
    }
    z = batches["train"].forward(params)
    result = batches["train"].loss(z)
    inner = hypergradient.pull_back(z, hypergradient.weighted(result.gradient, weights, COLUMNS), params, World())
    direction, val_losses = hypergradient.outer_direction(
        batches["val"], sgd_lookahead(params, inner, LR, DECAY), TASKS.proxy, COLUMNS, World()
    )
    found = hypergradient.exact(batches["train"], result.gradient, params, direction, LR, COLUMNS, len(TASKS), World())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(val_losses[TASKS.proxy], outer.detach(), rtol=1e-12, atol=0)
