"""Published checkpoints of several kinds to encoder and head: which kind a file is, and one reader each."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import ResNetConfig, ResNetModel

from blades_dist.config import ImportConfig, Resize
from blades_dist.detect.heads.linear import LinearHead
from blades_dist.detect.imports.blades import read_released, unwrapped
from blades_dist.detect.imports.folder import Imported
from blades_dist.models.clip_layout import image_tower
from blades_dist.models.convert import State, fill, read_state
from blades_dist.models.encoder_info import EncoderInfo
from blades_dist.models.frozen import FrozenEncoder
from blades_dist.models.hub import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, from_huggingface
from blades_dist.models.towers import HubTower, described


def read_import(config: ImportConfig) -> Imported:
    """The configured checkpoint, of the format told from its names or given.

    Raises:
        FileNotFoundError: no such file.
        OSError: a tokenizer or CLIP that is named cannot be read.
        ValueError: the file is not of the format, of no known format, holds code, or an option does not apply.
    """
    path = config.checkpoint
    told = recognised(unwrapped(read_state(path)))
    kind = told if config.format == "auto" else config.format
    if kind is None:
        raise ValueError(
            f"{path} is of no known layout; known are the released OC.pth and BC.pth, a torchvision ResNet-50 with one "
            "logit (CNNDetection), a linear head on CLIP features (UnivFD) and a CLIP in OpenAI's layout"
        )
    released = kind in ("blades_oc", "blades_bc")
    if released and told != kind:
        raise ValueError(f"{path} is no {kind} checkpoint" + (f"; it looks like {told}" if told else ""))
    for option, used in (("tokenizer", released), ("clip", kind == "univfd")):
        if getattr(config, option) is not None and not used:
            raise ValueError(f"{option}: not used by a checkpoint of format {kind}")
    made = {"imported": kind, "file": path.name, "sha256": _sha256(path)}
    if released:
        resize = config.resize or "bilinear_antialias"
        return read_released(path, config.tokenizer, resize, config.generated_column, made)
    if kind == "cnndetection":
        return read_cnndetection(path, config.resize or "area", made)
    if kind == "clip":
        return read_clip(path, config.resize or "pil_bicubic", provenance=made)
    if config.clip is None:
        raise ValueError(
            "clip: a univfd head needs the CLIP it was trained on, e.g. clip=openai/clip-vit-large-patch14"
        )
    return read_univfd(path, config.clip, config.resize, made)


def recognised(state: State) -> str | None:
    """The format of a state dict by its names; None if it is none of the known ones."""
    if any(name.startswith("model.model.visual.") for name in state):
        return "blades_bc"
    if any(name.startswith("model.visual.") for name in state):
        return "blades_oc"
    if "visual.class_embedding" in state and "visual.proj" in state:
        return "clip"
    if "layer1.0.conv1.weight" in state and "fc.weight" in state:
        return "cnndetection"
    if {name.removeprefix("fc.") for name in state} == {"weight", "bias"}:
        return "univfd"
    return None


def read_cnndetection(path: Path, resize: Resize = "area", provenance: Mapping[str, Any] | None = None) -> Imported:
    """A torchvision ResNet-50 whose fc is one logit of "AI-generated" (Wang et al., CVPR 2020).

    Its authors crop the centre of an image or take it whole, never resized. A face crop is a crop already, and the
    encoder has one input size: crops are resized to 224 x 224, with ImageNet's mean and deviation.

    Raises:
        FileNotFoundError, ValueError: as ``read_import``.
    """
    state = unwrapped(read_state(path))
    model = ResNetModel(ResNetConfig())
    try:
        fc = fill(model, {name: value.float() for name, value in state.items()})
        head = _linear(fc, 2048)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    info = _info(model.config.to_diff_dict(), 224, resize, 2048, False, provenance)
    return Imported(FrozenEncoder(info, HubTower(model, IMAGENET_MEAN, IMAGENET_STD)), head, "cnndetection")


def read_univfd(
    path: Path, clip: str, resize: Resize | None = None, provenance: Mapping[str, Any] | None = None
) -> Imported:
    """A linear head (``fc.weight`` or ``weight`` (1, D), and bias) on CLIP's image embeddings, which are not
    normalised (Ojha et al., CVPR 2023); ``clip`` is the Hugging Face name or folder of that CLIP.

    Its authors crop the centre of an image, never resized; here crops are resized as CLIP's own processor does.

    Raises:
        FileNotFoundError, OSError, ValueError: as ``read_import``.
    """
    encoder = from_huggingface(clip, normalise=False)
    update: dict[str, Any] = {"provenance": {**encoder.info.provenance, **(provenance or {})}}
    if resize:
        update["resize"] = resize
    encoder.info = encoder.info.model_copy(update=update)
    state = {name.removeprefix("fc."): value for name, value in unwrapped(read_state(path)).items()}
    try:
        head = _linear(state, encoder.info.embed_dim)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {clip} gives {encoder.info.embed_dim} features") from None
    return Imported(encoder, head, "univfd")


def read_clip(
    path: Path,
    resize: Resize = "pil_bicubic",
    normalise: bool = True,
    provenance: Mapping[str, Any] | None = None,
) -> Imported:
    """The vision transformer of a CLIP in OpenAI's layout, as FaRL is published; the text side is left out.

    Raises:
        FileNotFoundError, ValueError: as ``read_import``.
    """
    state = unwrapped(read_state(path))
    visual = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    try:
        model = image_tower(visual)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    size, width = model.config.image_size, model.config.projection_dim
    info = _info(described(model.config), size, resize, width, normalise, provenance)
    return Imported(FrozenEncoder(info, HubTower(model, CLIP_MEAN, CLIP_STD)), None, "clip")


def _linear(fc: State, width: int) -> LinearHead:
    shapes = {name: tuple(value.shape) for name, value in fc.items()}
    if shapes != {"weight": (1, width), "bias": (1,)}:
        raise ValueError(
            f"expected one logit on {width} features, fc weight (1, {width}) and bias (1,); found {shapes}"
        )
    return LinearHead(fc["weight"][0].double().numpy(), fc["bias"].double().numpy())


def _info(
    backbone: dict[str, Any],
    size: int,
    resize: Resize,
    width: int,
    normalise: bool,
    provenance: Mapping[str, Any] | None,
) -> EncoderInfo:
    return EncoderInfo(
        image_size=size,
        resize=resize,
        tower="huggingface",
        backbone=backbone,
        embed_dim=width,
        normalise=normalise,
        classes={},
        provenance=dict(provenance or {}),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
