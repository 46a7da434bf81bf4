"""Image towers of frozen encoders: ours, and any Hugging Face image model with a pooled output."""

from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    CLIPVisionModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SiglipVisionModel,
)

from blades_dist.config import ImageTowerConfig
from blades_dist.distributed import World
from blades_dist.models.batchnorm import replace_batchnorm
from blades_dist.models.encoder_info import EncoderInfo
from blades_dist.models.image import ImageTower

# Models of image and text: the class that holds the image side alone, for the whole and for the half.
_IMAGE_SIDE = {
    "clip": CLIPVisionModelWithProjection,
    "clip_vision_model": CLIPVisionModelWithProjection,
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
}
# What would make building from a configuration fetch or run something; no encoder of ours has these.
_REFUSED = ("auto_map", "backbone", "use_timm_backbone", "use_pretrained_backbone", "attn_implementation")


class HubTower(nn.Module):
    """A Hugging Face image model as a feature extractor.

    Features are CLIP's projected image embeddings, or the pooled output of other models. ``mean`` and ``std`` (per
    channel, for values in 0..1) are buffers as in ``ImageTower``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: PreTrainedModel, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) float in 0..1 to (B, D), not normalised."""
        output = self.model(pixel_values=(images - self.mean) / self.std)
        pooled = output.image_embeds if isinstance(self.model, CLIPVisionModelWithProjection) else output.pooler_output
        return pooled.flatten(1)


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that computes image features for a configuration.

    Raises:
        ValueError: the model takes no images, or text beside them.
    """
    kind = _IMAGE_SIDE.get(config.model_type) or MODEL_MAPPING.get(type(config), None)
    if isinstance(kind, tuple | list):
        kind = kind[0]
    takes = getattr(kind, "main_input_name", None)
    if takes != "pixel_values":
        raise ValueError(
            f"a model of type {config.model_type!r} takes {takes or 'no known input'}, not images alone; image models "
            "such as ViT, DINOv2, ResNet, ConvNeXt and Swin serve, and the image side of CLIP and SigLIP"
        )
    return kind


def described(config: PreTrainedConfig) -> dict[str, Any]:
    """A configuration as ``EncoderInfo.backbone`` holds it, without the labels of a classifier."""
    values = config.to_diff_dict()
    return {key: value for key, value in values.items() if key not in ("id2label", "label2id", "problem_type")}


def empty_tower(info: EncoderInfo) -> nn.Module:
    """The described tower with numbers yet to be loaded. Nothing is downloaded.

    Raises:
        ValueError: the description is of no tower that can be built.
    """
    try:
        if info.tower == "resnet_projection":
            values = {key: value for key, value in info.backbone.items() if key != "model_type"}
            backbone = ResNetModel(ResNetConfig(**values))
            replace_batchnorm(backbone, "frozen", World())
            return ImageTower(backbone, info.embed_dim, ImageTowerConfig())
        if found := [key for key in _REFUSED if info.backbone.get(key)]:
            raise ValueError(f"backbone: {', '.join(found)} cannot be set")
        config = AutoConfig.for_model(**info.backbone)
        model = model_class(config)(config)
    except (StrictDataclassError, TypeError, KeyError, AttributeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"backbone describes no network that can be built: {error}") from None
    return HubTower(model, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
