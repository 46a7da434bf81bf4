"""The joint image-text embedding: face crops to one logit per prompt."""

import math
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor, nn

from blades_dist.config import ModelConfig
from blades_dist.distributed import World
from blades_dist.models.adapt import adapt
from blades_dist.models.image import ImageTower, build_image_tower
from blades_dist.models.precision import LowPrecision
from blades_dist.models.text import TextTower, build_text_tower
from blades_dist.tasks import TaskSet

MAX_LOGIT_SCALE = 100.0  # CLIP's bound on exp(logit_scale)


class JointModel(nn.Module):
    """logits = exp(logit_scale) * <image feature, text feature>, both L2-normalised (DESIGN section 2).

    With ``autocast_dtype`` set, matrix products and convolutions run in that type on fp32 parameters.
    """

    autocast_dtype: torch.dtype | None = None

    def __init__(self, image: ImageTower, text: TextTower, logit_scale: float, learn_scale: bool) -> None:
        super().__init__()
        self.image, self.text = image, text
        # One element, not zero dimensions: DeepSpeed views every parameter as bytes.
        self.logit_scale = nn.Parameter(torch.tensor([math.log(logit_scale)]), requires_grad=learn_scale)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in 0..1 to logits (B, C); the prompts are encoded once, whatever B is."""
        with nullcontext() if self.autocast_dtype is None else self._low_precision(self.autocast_dtype):
            image = F.normalize(self.image(images).to(self.logit_scale.dtype), dim=-1)
            text = F.normalize(self.text().to(self.logit_scale.dtype), dim=-1)
        # The logits decide the losses to many digits: their product stays in full precision.
        return self.scale() * image @ text.T

    @cached_property
    def _low_precision(self) -> LowPrecision:
        return LowPrecision(self)

    def scale(self) -> Tensor:
        """exp(logit_scale), bounded."""
        return self.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)


def build_joint_model(config: ModelConfig, tasks: TaskSet, seed: int, world: World | None = None) -> JointModel:
    """The configured model; equal seeds give equal parameters, whatever else has drawn random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image = build_image_tower(config.image, config.embed_dim, config.batchnorm, world or World())
        text = build_text_tower(config.text, tasks.prompts, config.embed_dim)
    image.recompute = text.recompute = config.activation_checkpointing
    model = JointModel(image, text, config.logit_scale, config.learn_logit_scale)
    adapt(model)
    return model


def compile_towers(model: JointModel) -> None:
    """Compiles both towers in place, for fixed shapes; names stay, and ``functional_call`` works as before.

    Forward-mode passes of a compiled model must run inside ``eager``.

    Raises:
        ValueError: the model checkpoints activations; the compiler makes that choice itself.
    """
    if model.image.recompute or model.text.recompute:
        raise ValueError("compile: not together with activation_checkpointing; the compiler keeps what it needs")
    # Buffers given away after one backward would break the second one of a bi-level step (retain_graph).
    torch._functorch.config.donated_buffer = False
    model.image.compile(dynamic=False)
    model.text.compile(dynamic=False)


def eager() -> AbstractContextManager[None]:
    """Inside, compiled towers run as written: the compiler has no forward mode. Without effect on others."""
    return torch.compiler.set_stance("force_eager")
