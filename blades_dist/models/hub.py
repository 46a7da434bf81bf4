"""A Hugging Face image model, by name or folder, as a frozen encoder with its own preprocessing."""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from PIL import Image
from transformers import AutoConfig, PreTrainedConfig
from transformers.image_processing_base import ImageProcessingMixin

from blades_dist.config import Resize
from blades_dist.models.encoder_info import EncoderInfo
from blades_dist.models.frozen import FrozenEncoder
from blades_dist.models.pretrained import load_pretrained
from blades_dist.models.towers import HubTower, described, model_class

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Processing:
    """How a model wants its images: side in pixels, Pillow's filter, and mean and deviation of values in 0..1."""

    size: int
    resize: Resize
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


def from_huggingface(name: str, normalise: bool = True) -> FrozenEncoder:
    """``name`` (hub name or folder) as an encoder without text features.

    CLIP gives its projected image embeddings, other models their pooled output. Size, filter, mean and deviation come
    from the model's image processor configuration when it has one; the face crop is resized to that size as it is,
    without the centre crop that some processors do, for it is a crop already.

    Raises:
        OSError: ``name`` names no model that can be read.
        ValueError: the model takes no images, lacks weights, has no pooled output, or asks for a preprocessing that
            is not offered.
    """
    config = AutoConfig.from_pretrained(name)
    try:
        kind = model_class(config)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    how = processing(name, config)
    model = load_pretrained(kind, (config.model_type,), name)
    tower = HubTower(model, how.mean, how.std).eval()
    info = EncoderInfo(
        image_size=how.size,
        resize=how.resize,
        tower="huggingface",
        backbone=described(model.config),
        embed_dim=_width(tower, how.size, name),
        normalise=normalise,
        classes={},
        provenance={"huggingface": name, "preprocessing_from": how.source, "mean": how.mean, "std": how.std},
    )
    return FrozenEncoder(info, tower)


def processing(name: str, config: PreTrainedConfig) -> Processing:
    """The preprocessing of a model, from its image processor configuration or, without one, the usual of its kind.

    Raises:
        ValueError: the configuration asks for what is not offered.
    """
    try:
        values, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:
        values = {}
    if values:
        return _configured(name, values)
    clip = config.model_type.startswith("clip")
    inner = getattr(config, "vision_config", config)
    side = getattr(inner, "image_size", 224)
    if not isinstance(side, int):
        raise ValueError(f"{name}: image_size {side!r} is not one number")
    mean, std = (CLIP_MEAN, CLIP_STD) if clip else (IMAGENET_MEAN, IMAGENET_STD)
    return Processing(side, "pil_bicubic", mean, std, "defaults: the model has no preprocessor_config.json")


def _configured(name: str, values: dict[str, Any]) -> Processing:
    factor = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1.0
    if values.get("rescale_offset") or not math.isfinite(factor) or factor <= 0:
        raise ValueError(f"{name}: its image processor's rescaling (offset, or factor {factor}) is not offered")
    crop = values.get("crop_size") if values.get("do_center_crop") else None
    filters = {int(kernel): f"pil_{kernel.name.lower()}" for kernel in Image.Resampling}
    resample = values.get("resample", int(Image.Resampling.BICUBIC))
    if resample not in filters:
        raise ValueError(f"{name}: its image processor's resample {resample!r} is no filter of Pillow")
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if values.get("do_normalize", True):
        mean = tuple(values.get("image_mean") or IMAGENET_MEAN)
        std = tuple(values.get("image_std") or IMAGENET_STD)
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"{name}: its image processor's mean and std are not three numbers each")
    scale = 255 * factor  # (255 f x - mean) / std for x in 0..1
    return Processing(
        size=_side(name, crop or values.get("size", 224)),
        resize=cast(Resize, filters[resample]),
        mean=tuple(value / scale for value in mean),
        std=tuple(value / scale for value in std),
        source="preprocessor_config.json",
    )


def _side(name: str, size: Any) -> int:
    if isinstance(size, dict):
        sides = {size[key] for key in ("height", "width", "shortest_edge") if size.get(key)}
        size = sides.pop() if len(sides) == 1 else size
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"{name}: its image processor's size {size!r} is not that of a square")
    return size


def _width(tower: HubTower, size: int, name: str) -> int:
    """D, found by encoding an empty picture; so a model that cannot serve is refused here."""
    try:
        with torch.inference_mode():
            return tower(torch.zeros(1, 3, size, size)).shape[1]
    except (AttributeError, TypeError):
        raise ValueError(f"{name}: a model of type {tower.model.config.model_type!r} has no pooled output") from None
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{name} cannot encode pictures of {size} x {size} pixels: {error}") from None
