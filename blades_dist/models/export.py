"""The frozen encoder as a folder: what remains of pretraining for detectors. Two files, no text tower, no pickle."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from blades_dist.files import write_atomically
from blades_dist.models.encoder_info import DESCRIPTION, EncoderInfo, read_info
from blades_dist.models.frozen import FrozenEncoder, digest
from blades_dist.models.joint import JointModel, eager
from blades_dist.models.towers import empty_tower
from blades_dist.tasks import TaskSet

__all__ = [
    "EncoderInfo",
    "FrozenEncoder",
    "encoder_digest",
    "freeze",
    "load_encoder",
    "open_encoder",
    "save_encoder",
]

WEIGHTS = "encoder.safetensors"
HUB = "hf:"


def freeze(model: JointModel, tasks: TaskSet, image_size: int, provenance: dict[str, Any]) -> FrozenEncoder:
    """A frozen copy of a joint model's image tower with its prompts' features."""
    info = EncoderInfo(
        image_size=image_size,
        resize="area",
        tower="resnet_projection",
        backbone=model.image.backbone.config.to_diff_dict(),
        embed_dim=model.image.project.out_features,
        normalise=True,
        classes={task.name: list(task.classes) for task in tasks.tasks},
        provenance=provenance,
    )
    with eager(), torch.no_grad():  # one call does not pay for a compilation
        text = F.normalize(model.text(), dim=-1).float().cpu()
        scale = model.scale().float().cpu()
    encoder = FrozenEncoder(info, empty_tower(info), text, scale)
    encoder.image.load_state_dict(model.image.state_dict())
    return encoder


def open_encoder(reference: str | Path, normalise: bool = True) -> FrozenEncoder:
    """The encoder that a person names: an encoder folder, a detector's folder (its encoder), or
    ``hf:NAME_OR_FOLDER``, a Hugging Face image model as a feature extractor.

    ``normalise`` is for the last of these; folders say for themselves.

    Raises:
        FileNotFoundError: no such folder, or no encoder in it.
        OSError: no model of that name can be read.
        ValueError: what was found cannot serve; the message says why.
    """
    if str(reference).startswith(HUB):
        from blades_dist.models.hub import from_huggingface

        return from_huggingface(str(reference).removeprefix(HUB), normalise)
    folder = Path(reference)
    if (folder / "config.json").is_file() and not (folder / DESCRIPTION).is_file():
        raise FileNotFoundError(f"{folder} is no encoder folder; for a Hugging Face model in a folder: {HUB}{folder}")
    return load_encoder(folder)


def save_encoder(encoder: FrozenEncoder, folder: Path) -> None:
    """Writes ``encoder.safetensors`` and ``encoder.json`` into ``folder`` (made if missing)."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous().cpu() for name, value in encoder.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    write_atomically(folder / DESCRIPTION, json.dumps(encoder.info.model_dump(mode="json"), indent=1) + "\n")


def load_encoder(folder: Path) -> FrozenEncoder:
    """The encoder of a folder, on the CPU.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: a file is damaged, or they do not belong together; the message says which and why.
    """
    _check_files(folder)
    info = read_info(folder / DESCRIPTION)
    try:
        tower = empty_tower(info)
    except ValueError as error:
        raise ValueError(f"{folder / DESCRIPTION}: {error}") from None
    try:
        state = load_file(folder / WEIGHTS)
        expected = (sum(map(len, info.classes.values())), info.embed_dim)
        if state["text_features"].shape != expected:
            raise RuntimeError(f"text_features of shape {tuple(state['text_features'].shape)}, expected {expected}")
        encoder = FrozenEncoder(info, tower, state["text_features"], state["scale"])
        encoder.load_state_dict(state)
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged: {error}") from None
    except RuntimeError as error:  # names and shapes that do not fit
        raise ValueError(f"{folder / WEIGHTS} does not fit {DESCRIPTION}: {error}") from None
    return encoder


def encoder_digest(encoder: Path | FrozenEncoder) -> str:
    """sha-256 that names an encoder in caches and reports: of its weights and of what its description says about
    preprocessing, architecture and normalisation; the same for a folder and what is loaded from it.

    Raises:
        FileNotFoundError, ValueError: as ``load_encoder``.
    """
    if isinstance(encoder, FrozenEncoder):
        return digest(encoder.info, encoder.state_dict())
    _check_files(encoder)
    info = read_info(encoder / DESCRIPTION)
    try:
        return digest(info, load_file(encoder / WEIGHTS))
    except SafetensorError as error:
        raise ValueError(f"{encoder / WEIGHTS} is damaged: {error}") from None


def _check_files(folder: Path) -> None:
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no encoder folder: {name} is missing")
