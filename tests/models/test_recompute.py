"""Activation checkpointing: the same numbers and statistics from fewer kept bytes."""

import copy
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call, jvp

from blades_dist.distributed import World
from blades_dist.models.batchnorm import still_statistics
from blades_dist.models.joint import JointModel
from blades_dist.testing.gloo import GlooPool
from tests.models.small import nearby, photographs, small_model


def pair(**options: object) -> tuple[JointModel, JointModel]:
    """A model without and one with checkpointing, else equal, in training."""
    plain = small_model(text={"layers": 2}, **options).double().train()
    checked = small_model(text={"layers": 2}, **options, activation_checkpointing=True).double().train()
    return plain, checked


def assert_same_buffers(first: JointModel, second: JointModel) -> None:
    for (name, a), (_, b) in zip(first.named_buffers(), second.named_buffers(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("batchnorm", ["sync", "frozen"])
def test_gradients_and_statistics_are_the_same_in_two_backwards(batchnorm: str) -> None:
    images = photographs(4).double()
    found = []
    models = pair(batchnorm=batchnorm)
    for model in models:
        logits = model(images)
        params = list(model.parameters())
        with still_statistics(model):  # as the outer step has it
            first = torch.autograd.grad(logits, params, torch.ones_like(logits), retain_graph=True)
        second = torch.autograd.grad(logits, params, logits.detach())
        found.append((*first, *second))
    for plain, checked in zip(*found, strict=True):
        torch.testing.assert_close(checked, plain, rtol=0, atol=1e-12)
    assert_same_buffers(*models)


@pytest.mark.parametrize("still", [True, False])
def test_the_gradient_at_other_parameters_is_taken_there(still: bool) -> None:
    """The second forward runs after functional_call has put the live parameters back."""
    images = photographs(4).double()
    models = pair()
    found = []
    for model in models:
        before = copy.deepcopy(model.state_dict())
        point = nearby(model)
        with still_statistics(model) if still else nullcontext():
            logits = functional_call(model, point, (images,))
        found.append(torch.autograd.grad(logits, list(point.values()), torch.ones_like(logits)))
        for name, value in model.state_dict().items():
            moves = not still and ("running" in name or "tracked" in name)
            assert moves or torch.equal(value, before[name]), name
    live = torch.autograd.grad(models[0](images).sum(), list(models[0].parameters()))
    assert not torch.allclose(found[0][0], live[0])
    for plain, checked in zip(*found, strict=True):
        torch.testing.assert_close(checked, plain, rtol=0, atol=1e-12)


def test_bf16_recomputes_in_bf16() -> None:
    images = photographs(4)
    found = []
    for model in pair():
        model.float().autocast_dtype = torch.bfloat16
        logits = model(images)  # its autocast has ended when the backward comes
        found.append(torch.autograd.grad(logits.sum(), list(model.parameters())))
    for plain, checked in zip(*found, strict=True):
        assert torch.equal(checked, plain)


def test_forward_mode_is_untouched() -> None:
    images = photographs(2).double()
    tangents = []
    for model in pair():
        params = {name: value.detach() for name, value in model.named_parameters()}
        direction = {name: value.detach() for name, value in nearby(model).items()}
        forward: Callable[..., Tensor] = lambda p, model=model: functional_call(model, p, (images,))  # noqa: E731
        with torch.no_grad(), still_statistics(model):
            tangents.append(jvp(forward, (params,), (direction,))[1])
    torch.testing.assert_close(*tangents, rtol=0, atol=1e-12)


def kept_bytes(model: JointModel, images: Tensor) -> int:
    """Activations that the graph of one forward holds; checkpoints save their inputs the same way."""
    kept = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage()  # held, so that addresses stay apart
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        model(images)
    held = {value.untyped_storage().data_ptr() for value in [*model.parameters(), *model.buffers()]}
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in held)


def test_it_keeps_less() -> None:
    images = photographs(8, 64).double()
    plain, checked = (kept_bytes(model, images) for model in pair())
    assert checked < 0.6 * plain, (plain, checked)


def gradients_of_a_rank(checked: bool) -> list[np.ndarray]:
    world = World.current()
    model = small_model(activation_checkpointing=checked, world=world).double().train()
    logits = model(photographs(4 + world.rank).double()[:4])
    return [value.numpy() for value in torch.autograd.grad(logits.sum(), list(model.parameters()))]


def test_synchronised_batchnorm_recomputes_over_all_ranks(two_ranks: GlooPool) -> None:
    for plain, checked in zip(*(two_ranks.run(gradients_of_a_rank, flag) for flag in (False, True)), strict=True):
        for a, b in zip(plain, checked, strict=True):
            torch.testing.assert_close(torch.from_numpy(b), torch.from_numpy(a), rtol=0, atol=1e-12)
