"""Image tower: transformers' ResNet with a linear projection to the joint embedding."""

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from blades_dist.config import ImageTowerConfig
from blades_dist.distributed import World
from blades_dist.models.batchnorm import Mode, replace_batchnorm
from blades_dist.models.convert import fill, load_torchvision
from blades_dist.models.pretrained import load_pretrained
from blades_dist.models.recompute import recompute

log = logging.getLogger(__name__)

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
    recompute = False

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
        hidden = self.backbone.embedder(pixels)
        for stage in self.backbone.encoder.stages:
            for layer in stage.layers:
                hidden = recompute(layer, hidden) if self.recompute else layer(hidden)
        return self.project(self.backbone.pooler(hidden).flatten(1))


def build_image_tower(config: ImageTowerConfig, embed_dim: int, batchnorm: Mode, world: World) -> ImageTower:
    """A tower of the configured shape: from scratch (torch's global seed), from a Hugging Face ResNet, or from a file
    in torchvision's layout, whose fc becomes the projection if it has ``embed_dim`` outputs.

    Raises:
        OSError: ``config.pretrained`` or ``config.weights`` names nothing that can be read.
        ValueError: what was read is no ResNet, or none of the preset's shape.
    """
    if config.pretrained is not None:
        backbone = load_pretrained(ResNetModel, ("resnet",), config.pretrained)
    else:
        channels = 6 if config.highpass else 3
        backbone = ResNetModel(ResNetConfig(num_channels=channels, **PRESETS[config.preset]))
    tower = ImageTower(backbone, embed_dim, config)
    if config.weights is not None:
        _read_weights(tower, config)
    replace_batchnorm(backbone, batchnorm, world)
    return tower


def _read_weights(tower: ImageTower, config: ImageTowerConfig) -> None:
    assert config.weights is not None
    state = load_torchvision(config.weights)
    try:
        head = fill(tower.backbone, state)
    except ValueError as error:
        raise ValueError(f"{config.weights} for preset {config.preset}: {error}") from None
    shapes = {name: value.shape for name, value in tower.project.state_dict().items()}
    if {name: value.shape for name, value in head.items()} == shapes:
        tower.project.load_state_dict(head)
        log.info("%s: its fc is the projection to the embedding", config.weights)
    else:
        found = f"its fc has {len(head['weight'])} outputs" if "weight" in head else "it has no fc"
        log.info("%s: %s, so the projection starts fresh", config.weights, found)


def _blur(pixels: Tensor) -> Tensor:
    """3 x 3 binomial blur of (B, 3, S, S), edges repeated."""
    padded = F.pad(pixels, (1, 1, 1, 1), mode="replicate")
    rows = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 16
