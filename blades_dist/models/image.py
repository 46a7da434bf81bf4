"""Image tower: transformers' ResNet with a linear projection to the joint embedding."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from blades_dist.bilevel.reduce import World
from blades_dist.config import ImageTowerConfig
from blades_dist.models.batchnorm import Mode, replace_batchnorm

PRESETS: dict[str, dict[str, Any]] = {
    "resnet50": {},
    "resnet_small": {
        "embedding_size": 32,
        "hidden_sizes": [32, 64, 128, 256],
        "depths": [2, 2, 2, 2],
        "layer_type": "basic",
    },
    "resnet_tiny": {
        "embedding_size": 24,
        "hidden_sizes": [24, 48, 96, 192],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
    },
}


class ImageTower(nn.Module):
    """Face crops to embeddings.

    ``mean`` and ``std`` (per channel, for values in 0..1) and ``highpass`` are buffers, so that an exported encoder
    carries its own preprocessing. A backbone of six channels also sees what a 3 x 3 binomial blur removes, times
    ``highpass``: the traces of a camera are weak beside the picture, and a small tower finds them sooner this way
    (fixed residual filters are common in image forensics: Fridrich and Kodovsky, 2012).
    """

    mean: Tensor
    std: Tensor
    highpass: Tensor

    def __init__(self, backbone: ResNetModel, embed_dim: int, config: ImageTowerConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.project = nn.Linear(backbone.config.hidden_sizes[-1], embed_dim)
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1))
        self.register_buffer("highpass", torch.tensor([config.highpass]))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in 0..1, any float dtype, to (B, D) embeddings, not normalised."""
        pixels = (images - self.mean) / self.std
        if self.backbone.config.num_channels == 2 * images.shape[1]:
            pixels = torch.cat((pixels, self.highpass * (pixels - _blur(pixels))), dim=1)
        pixels = pixels.contiguous(memory_format=torch.channels_last)  # what convolutions are fastest in
        pooled = self.backbone(pixel_values=pixels, return_dict=True).pooler_output
        return self.project(pooled.flatten(1))


def build_image_tower(config: ImageTowerConfig, embed_dim: int, batchnorm: Mode, world: World) -> ImageTower:
    """A tower of the configured shape, from scratch (torch's global seed) or from a Hugging Face ResNet.

    Raises:
        OSError: ``config.pretrained`` names no model that can be read.
    """
    if config.pretrained is not None:
        backbone = ResNetModel.from_pretrained(config.pretrained)
    else:
        channels = 6 if config.highpass else 3
        backbone = ResNetModel(ResNetConfig(num_channels=channels, **PRESETS[config.preset]))
    replace_batchnorm(backbone, batchnorm, world)
    return ImageTower(backbone, embed_dim, config)


def _blur(pixels: Tensor) -> Tensor:
    """3 x 3 binomial blur of (B, 3, S, S), edges repeated."""
    padded = F.pad(pixels, (1, 1, 1, 1), mode="replicate")
    rows = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 16
