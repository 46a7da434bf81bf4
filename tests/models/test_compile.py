"""Compiled towers: the same numbers, at any parameters, in two backwards, and forward mode beside them."""

import shutil

import pytest
import torch
from torch.func import functional_call, jvp

from blades_dist.models.batchnorm import still_statistics
from blades_dist.models.image import PRESETS
from blades_dist.models.joint import compile_towers, eager
from tests.models.small import nearby, photographs, small_model

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++) here")


@pytest.mark.slow
def test_compiled_towers_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    # One stage holds every kind of layer; each further one costs the C++ compiler as long again.
    one_stage = {"embedding_size": 8, "hidden_sizes": [16], "depths": [1], "layer_type": "basic"}
    monkeypatch.setitem(PRESETS, "resnet_tiny", one_stage)
    images = photographs(4)
    plain, compiled = small_model().train(), small_model().train()
    names = list(compiled.state_dict())
    compile_towers(compiled)
    assert list(compiled.state_dict()) == names
    found = []
    for model in (plain, compiled):
        params = list(model.parameters())
        logits = model(images)
        first = torch.autograd.grad(logits, params, torch.ones_like(logits), retain_graph=True)
        point = nearby(model)
        with still_statistics(model):
            there = functional_call(model, point, (images,))
        direction = torch.autograd.grad(there, list(point.values()), torch.ones_like(there))
        with eager(), still_statistics(model), torch.no_grad():
            tangents = dict(zip(point, direction, strict=True))
            live = {name: value.detach() for name, value in model.named_parameters()}
            moved = jvp(lambda p, m=model: functional_call(m, p, (images,)), (live,), (tangents,))[1]
        second = torch.autograd.grad(logits, params, logits.detach())
        found.append(
            [
                logits.detach(),
                there.detach(),
                moved,
                *first,
                *second,
                *direction,
                *(value.float() for value in model.buffers()),
            ]
        )
    assert not torch.allclose(found[1][0], found[1][1]), "the given parameters are used, not the live ones"
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=2e-4 * float(a.abs().max().clamp(min=1)))


def test_eager_nests_and_ends() -> None:
    calls = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        calls.append(graph)
        return graph

    twice = torch.compile(lambda x: 2 * x, backend=backend)
    with eager(), eager():
        pass
    with eager():
        with eager():
            twice(torch.ones(2))
        twice(torch.ones(2))
    assert not calls
    twice(torch.ones(2))
    assert len(calls) == 1


def test_checkpointing_and_compiling_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="not together with activation_checkpointing"):
        compile_towers(small_model(activation_checkpointing=True))
