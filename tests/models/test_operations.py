"""How many operations the passes of a step hand to a GPU: counted on the meta device, for the full default model."""

import torch
from torch.func import functional_call

from blades_dist.bilevel.hypergradient import push_forward
from blades_dist.config import ModelConfig
from blades_dist.models.batchnorm import still_statistics
from blades_dist.models.dual import forget, remember
from blades_dist.models.joint import build_joint_model
from blades_dist.tasks import task_set
from blades_dist.testing.dispatch import OperationCounter

PASSES = {"forward": 400, "backward": 650, "forward at a point": 400, "backward at a point": 650, "forward mode": 900}


def test_a_bf16_step_of_the_full_model_takes_few_operations() -> None:
    model = build_joint_model(ModelConfig(), task_set(), 0).to("meta").train()
    model.autocast_dtype = torch.bfloat16
    images = torch.empty(2, 3, 224, 224, device="meta")
    live = dict(model.named_parameters())
    point = {name: value.detach().requires_grad_() for name, value in live.items()}
    counters = {name: OperationCounter() for name in PASSES}
    with counters["forward"], remember(model):
        logits = model(images)
    with counters["backward"]:
        torch.autograd.grad(logits.sum(), list(live.values()))
    with still_statistics(model), counters["forward at a point"]:
        logits = functional_call(model, point, (images,))
    with counters["backward at a point"]:
        direction = dict(zip(point, torch.autograd.grad(logits.sum(), list(point.values())), strict=True))
    present = {name: value.detach() for name, value in live.items()}
    with still_statistics(model), torch.no_grad(), counters["forward mode"]:
        push_forward(lambda params: functional_call(model, params, (images,)), present, direction)
    forget(model)
    found = {name: counter.total for name, counter in counters.items()}
    print(found, {name: counter.counts.most_common(12) for name, counter in counters.items()})
    assert all(found[name] <= most for name, most in PASSES.items()), found
    assert sum(found.values()) <= 3000


def test_what_counts_as_an_operation() -> None:
    values = [torch.ones(3), torch.ones(4)]
    with OperationCounter() as counter:
        torch.empty(3).view(3, 1).T.detach()
        torch._foreach_add_(values, 1.0)
        values[0].add_(1).mul(2)
    assert counter.counts == {"_foreach_add_.Scalar": 1, "add_.Tensor": 1, "mul.Tensor": 1}
