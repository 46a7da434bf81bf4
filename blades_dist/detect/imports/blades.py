"""The checkpoints that the paper's authors released (arXiv 2507.22824), as frozen encoder and perceptron.

``OC.pth``: under ``model.`` a torchvision ResNet-50 with a 768-wide fc (``visual.``), CLIP RN50's text tower,
``text_fc`` (1024 -> 768) and ``logit_scale``. ``BC.pth``: the same under ``model.model.``, and beside it ``fc1``
(768 -> 1536) and ``fc2`` (1536 -> 2), a perceptron on normalised features whose second output means AI-generated.
Their code resizes the float tensor to 224 x 224, subtracts CLIP's mean and divides by its deviation.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTokenizer, ResNetConfig, ResNetModel

from blades_dist.config import ImageTowerConfig, Resize
from blades_dist.detect.heads.perceptron import PerceptronHead
from blades_dist.detect.imports.folder import Imported
from blades_dist.distributed import World
from blades_dist.models.batchnorm import replace_batchnorm
from blades_dist.models.clip_layout import is_text, prompt_features
from blades_dist.models.convert import State, fill, read_state, some_names
from blades_dist.models.encoder_info import EncoderInfo
from blades_dist.models.frozen import FrozenEncoder
from blades_dist.models.image import ImageTower
from blades_dist.tasks import task_set

log = logging.getLogger(__name__)

IMAGE_SIZE = 224
EMBED_DIM = 768
OC, BC = "model.", "model.model."
_PERCEPTRON = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
_TEXT_SIDE = ("text_fc.weight", "text_fc.bias", "logit_scale")


def read_released(
    path: Path,
    tokenizer: str | None = None,
    resize: Resize = "bilinear_antialias",
    generated_column: int = 1,
    provenance: Mapping[str, Any] | None = None,
) -> Imported:
    """``OC.pth`` (no head) or ``BC.pth`` (with its perceptron), told by their names.

    With ``tokenizer`` (CLIP's, a folder or hub name) the prompts of ``tasks`` are encoded with the file's text tower
    and ``text_fc``, and the encoder keeps its pretext read-outs; without, it has none. ``generated_column`` is the
    output of ``fc2`` that means AI-generated.

    Raises:
        FileNotFoundError: no such file.
        OSError: no tokenizer can be read there.
        ValueError: the file holds code, is damaged, or is not of this layout; missing and unknown names are listed.
    """
    state = unwrapped(read_state(path))
    try:
        return _imported(state, tokenizer, resize, generated_column, provenance or {})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def unwrapped(state: State) -> State:
    """Names without the ``module.`` that data-parallel training puts before all of them."""
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _imported(
    state: State, tokenizer: str | None, resize: Resize, generated_column: int, provenance: Mapping[str, Any]
) -> Imported:
    binary = any(name.startswith(f"{BC}visual.") for name in state)
    prefix = BC if binary else OC
    own = {name.removeprefix(prefix): value.float() for name, value in state.items() if name.startswith(prefix)}
    visual = {name.removeprefix("visual."): value for name, value in own.items() if name.startswith("visual.")}
    text = {name: value for name, value in own.items() if is_text(name) or name in _TEXT_SIDE}
    beside = [name for name in state if not name.startswith(prefix) and not (binary and name in _PERCEPTRON)]
    beside += [f"{prefix}{name}" for name in own if name not in text and not name.startswith("visual.")]
    if beside:
        raise ValueError(f"not a released checkpoint: unexpected {some_names(beside)}")
    tower = _tower(visual)
    found, scale = _text_side(text, tokenizer)
    note = "from the file's text tower" if len(found) else "none: no tokenizer was given, so there are no read-outs"
    info = EncoderInfo(
        image_size=IMAGE_SIZE,
        resize=resize,
        tower="resnet_projection",
        backbone=tower.backbone.config.to_diff_dict(),
        embed_dim=EMBED_DIM,
        normalise=True,
        classes={task.name: list(task.classes) for task in task_set().tasks} if len(found) else {},
        provenance={**provenance, "text_features": note},
    )
    if not len(found):
        log.info("imported without text features: give tokenizer= (CLIP's, folder or name) to keep pretext read-outs")
    head = _perceptron(state, generated_column) if binary else None
    return Imported(FrozenEncoder(info, tower, found, scale), head, "blades_bc" if binary else "blades_oc")


def _tower(visual: State) -> ImageTower:
    tower = ImageTower(ResNetModel(ResNetConfig()), EMBED_DIM, ImageTowerConfig())  # whose mean and std are CLIP's
    head = fill(tower.backbone, visual)
    shapes = {name: tuple(value.shape) for name, value in head.items()}
    if shapes != {"weight": (EMBED_DIM, 2048), "bias": (EMBED_DIM,)}:
        raise ValueError(f"visual.fc must map 2048 to {EMBED_DIM} numbers; found {shapes or 'none'}")
    tower.project.load_state_dict(head)
    replace_batchnorm(tower.backbone, "frozen", World())
    return tower


def _text_side(text: State, tokenizer: str | None) -> tuple[Tensor, Tensor]:
    """Prompt features (C, D) of norm 1 and the scale (1,); none of both without a tokenizer.

    As released: prompt, text tower, ``text_projection``, ``text_fc``, norm 1; the scale is exp(``logit_scale``).
    """
    if tokenizer is None:
        return torch.empty(0, EMBED_DIM), torch.ones(1)
    missing = [name for name in _TEXT_SIDE if name not in text]
    if missing:
        raise ValueError(f"text features were asked for, but {some_names(missing)} is missing")
    encode = CLIPTokenizer.from_pretrained(tokenizer)
    prompts = [list(encode(prompt)["input_ids"]) for prompt in task_set().prompts]
    features = prompt_features({name: value for name, value in text.items() if is_text(name)}, prompts)
    weight = text["text_fc.weight"]
    if weight.shape != (EMBED_DIM, features.shape[1]) or text["text_fc.bias"].shape != (EMBED_DIM,):
        raise ValueError(f"text_fc is {tuple(weight.shape)}; expected {(EMBED_DIM, features.shape[1])}")
    found = F.linear(features, weight, text["text_fc.bias"])
    return F.normalize(found, dim=-1), text["logit_scale"].reshape(1).exp()


def _perceptron(state: State, generated_column: int) -> PerceptronHead:
    missing = [name for name in _PERCEPTRON if name not in state]
    if missing:
        raise ValueError(f"the perceptron is incomplete: {some_names(missing)} is missing")
    values = {name: state[name].double().numpy() for name in _PERCEPTRON}
    shapes = {name: value.shape for name, value in values.items()}
    hidden = len(values["fc1.bias"])
    wanted = dict(zip(_PERCEPTRON, ((hidden, EMBED_DIM), (hidden,), (2, hidden), (2,)), strict=True))
    if shapes != wanted:
        raise ValueError(f"the perceptron's shapes are {shapes}; expected {wanted}")
    order = np.array([1 - generated_column, generated_column])  # ours: photographic, AI-generated
    return PerceptronHead(
        hidden_weight=values["fc1.weight"],
        hidden_bias=values["fc1.bias"],
        out_weight=values["fc2.weight"][order],
        out_bias=values["fc2.bias"][order],
    )
