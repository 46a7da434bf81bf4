"""The frozen encoder in memory: face crops to features, features to pretext logits."""

import hashlib
import json
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blades_dist.arithmetic import ieee_fp32, in_blocks
from blades_dist.models.encoder_info import EncoderInfo
from blades_dist.models.resize import FLOAT, resized

BLOCK = 32  # rows of every forward on a GPU: a service's usual batch, and enough to keep a card busy


class FrozenEncoder(nn.Module):
    """Face crops to features, and features to pretext logits, on frozen weights in fp32: IEEE fp32 on every device, so
    that a threshold calibrated on one holds on another.

    On a GPU rows go through in blocks of ``BLOCK``, whatever their number: what a row gives does not depend on the
    others. On a CPU it does in the last digits; who must not notice gives one row at a time.

    ``image`` maps (B, 3, S, S) in 0..1 to (B, D); ``text_features`` (C, D) of norm 1 and ``scale`` (1,) are the
    prompts' side, C = 0 where there is none (the default).
    """

    text_features: Tensor
    scale: Tensor

    def __init__(
        self, info: EncoderInfo, image: nn.Module, text_features: Tensor | None = None, scale: Tensor | None = None
    ) -> None:
        super().__init__()
        self.info, self.image = info, image
        self.register_buffer(
            "text_features", torch.empty(0, info.embed_dim) if text_features is None else text_features
        )
        self.register_buffer("scale", torch.ones(1) if scale is None else scale)
        self.eval().requires_grad_(False)

    @property
    def input_dtype(self) -> torch.dtype:
        """What ``features`` takes and ``prepare`` gives: uint8, or float32 in 0..1."""
        return torch.float32 if self.info.resize in FLOAT else torch.uint8

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """A crop (H, W, 3) uint8 RGB of any size to (3, S, S) of ``input_dtype``.

        Raises:
            ValueError: pixels of another shape or type.
        """
        return resized(pixels, self.info.image_size, self.info.resize)

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) of ``input_dtype`` at S = ``info.image_size`` to (B, D) float32, of norm 1 if
        ``info.normalise``.

        Raises:
            ValueError: images of another shape or type.
        """
        size, dtype = self.info.image_size, self.input_dtype
        if images.dtype != dtype or images.shape[1:] != (3, size, size):
            name = str(dtype).removeprefix("torch.")
            raise ValueError(f"expected {name} images (B, 3, {size}, {size}), got {images.dtype} {tuple(images.shape)}")
        return self._alike(self._features, images)

    @torch.inference_mode()
    def logits(self, features: Tensor) -> Tensor:
        """(B, D) features to (B, C) pretext logits; C is 0 for an encoder without text features."""
        return self._alike(self._logits, features)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``features`` and ``logits`` of a batch in one graph, unchecked: what is exported to other runtimes."""
        features = self._features(images)
        return features, self._logits(features)

    @property
    def _block(self) -> int | None:
        return BLOCK if self.text_features.device.type == "cuda" else None

    def _alike(self, compute: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        with ieee_fp32():
            rows, block = rows.to(self.text_features.device), self._block
            return compute(rows) if block is None else in_blocks(compute, rows, block)

    def _features(self, images: Tensor) -> Tensor:
        found = self.image(images.float() / 255 if images.dtype == torch.uint8 else images)
        return F.normalize(found, dim=-1) if self.info.normalise else found

    def _logits(self, features: Tensor) -> Tensor:
        if not self.info.normalise:
            features = F.normalize(features, dim=-1)
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
        raise KeyError(f"no task {task!r}; this encoder has {', '.join(self.info.classes) or 'none'}")


def digest(info: EncoderInfo, state: Mapping[str, Tensor]) -> str:
    """sha-256 of everything that changes features or logits: description and numbers, whatever file holds them."""
    found = hashlib.sha256(json.dumps(info.identity(), sort_keys=True).encode())
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        if value.numel():
            found.update(value.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
