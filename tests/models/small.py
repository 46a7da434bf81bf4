"""Joint models that take a moment to build, and random photographs, for the tests of this folder."""

from typing import Any

import torch
from torch import Tensor

from blades_dist.config import ModelConfig
from blades_dist.distributed import World
from blades_dist.models.joint import JointModel, build_joint_model
from blades_dist.tasks import task_set


def small_model(
    image: dict[str, Any] | None = None, text: dict[str, Any] | None = None, world: World | None = None, **model: Any
) -> JointModel:
    values = {
        "image": {"preset": "resnet_tiny", **(image or {})},
        "text": {"layers": 1, "width": 32, "heads": 2, **(text or {})},
        "embed_dim": 32,
        **model,
    }
    return build_joint_model(ModelConfig.model_validate(values), task_set(), 0, world)


def photographs(rows: int, side: int = 32) -> Tensor:
    return torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(rows))


def nearby(model: JointModel) -> dict[str, Tensor]:
    """Parameters a little off the model's own, as a look-ahead has them."""
    generator = torch.Generator().manual_seed(1)
    params = {name: value.detach() for name, value in model.named_parameters()}
    return {
        name: (value + 0.03 * torch.randn(value.shape, generator=generator).to(value)).requires_grad_()
        for name, value in params.items()
    }
