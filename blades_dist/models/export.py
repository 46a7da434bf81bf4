"""The frozen encoder: what remains of pretraining for detectors. Two files, no text tower, no pickle."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from blades_dist.bilevel.reduce import World
from blades_dist.config import ImageTowerConfig
from blades_dist.models.batchnorm import replace_batchnorm
from blades_dist.models.image import ImageTower
from blades_dist.models.joint import JointModel, eager
from blades_dist.tasks import TaskSet

WEIGHTS = "encoder.safetensors"
DESCRIPTION = "encoder.json"


class EncoderInfo(BaseModel):
    """Everything about an encoder but its numbers; ``classes`` names the logit columns of each task in order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    image_size: int
    embed_dim: int
    backbone: dict[str, Any]
    classes: dict[str, list[str]]
    provenance: dict[str, Any]


class FrozenEncoder(nn.Module):
    """Face crops to L2-normalised features, and features to pretext logits, on frozen weights in fp32."""

    text_features: Tensor
    scale: Tensor

    def __init__(self, info: EncoderInfo, image: ImageTower, text_features: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.info, self.image = info, image
        self.register_buffer("text_features", text_features)
        self.register_buffer("scale", scale)
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 at S = ``info.image_size`` to (B, D) float32 of norm 1.

        Raises:
            ValueError: images of another shape or type.
        """
        size = self.info.image_size
        if images.dtype != torch.uint8 or images.shape[1:] != (3, size, size):
            raise ValueError(f"expected uint8 images (B, 3, {size}, {size}), got {images.dtype} {tuple(images.shape)}")
        return F.normalize(self.image(images.to(self.text_features.device).float() / 255), dim=-1)

    @torch.inference_mode()
    def logits(self, features: Tensor) -> Tensor:
        """(B, D) features to (B, C) pretext logits."""
        return self.scale * features @ self.text_features.T

    def columns(self, task: str) -> slice:
        """Logit columns of a task.

        Raises:
            KeyError: the encoder was not trained on it.
        """
        start = 0
        for name, classes in self.info.classes.items():
            if name == task:
                return slice(start, start + len(classes))
            start += len(classes)
        raise KeyError(f"no task {task!r}; this encoder has {', '.join(self.info.classes)}")


def freeze(model: JointModel, tasks: TaskSet, image_size: int, provenance: dict[str, Any]) -> FrozenEncoder:
    """A frozen copy of a joint model's image tower with its prompts' features."""
    info = EncoderInfo(
        image_size=image_size,
        embed_dim=model.image.project.out_features,
        backbone=model.image.backbone.config.to_diff_dict(),
        classes={task.name: list(task.classes) for task in tasks.tasks},
        provenance=provenance,
    )
    with eager(), torch.no_grad():  # one call does not pay for a compilation
        text = F.normalize(model.text(), dim=-1).float().cpu()
        scale = model.scale().float().cpu()
    encoder = FrozenEncoder(info, _empty_tower(info), text, scale)
    encoder.image.load_state_dict(model.image.state_dict())
    return encoder


def save_encoder(encoder: FrozenEncoder, folder: Path) -> None:
    """Writes ``encoder.safetensors`` and ``encoder.json`` into ``folder`` (made if missing)."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous().cpu() for name, value in encoder.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps(encoder.info.model_dump(mode="json"), indent=1) + "\n")


def load_encoder(folder: Path) -> FrozenEncoder:
    """The encoder of a folder, on the CPU.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: a file is damaged, or they do not belong together; the message says which and why.
    """
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no encoder folder: {name} is missing")
    try:
        info = EncoderInfo.model_validate_json((folder / DESCRIPTION).read_text())
        state = load_file(folder / WEIGHTS)
        encoder = FrozenEncoder(info, _empty_tower(info), state["text_features"], state["scale"])
        encoder.load_state_dict(state)
    except ValidationError as error:
        raise ValueError(f"{folder / DESCRIPTION} is not an encoder description: {error}") from None
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged: {error}") from None
    except RuntimeError as error:  # names and shapes that do not fit
        raise ValueError(f"{folder / WEIGHTS} does not fit {DESCRIPTION}: {error}") from None
    return encoder


def encoder_digest(folder: Path) -> str:
    """sha-256 of an encoder's weights file: its identity in caches and reports."""
    with (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _empty_tower(info: EncoderInfo) -> ImageTower:
    values = {key: value for key, value in info.backbone.items() if key != "model_type"}
    backbone = ResNetModel(ResNetConfig(**values))
    replace_batchnorm(backbone, "frozen", World())
    return ImageTower(backbone, info.embed_dim, ImageTowerConfig())
