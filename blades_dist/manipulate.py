"""Batched face manipulations: what turns a photograph into a sample of the coarse and fine tasks.

Flips of the mouth, eye and nose regions blended through a soft mask, and a piecewise warp of the whole face
(DESIGN section 6). All randomness comes from one generator, drawn for the global batch, so that a sample is
treated the same however many workers share the batch.

Decisions are made on the CPU. There they say which rows to compute; on a GPU, where finding rows would make the host
wait and every row is at hand anyway, all are computed and masks choose between before and after. Same pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from blades_dist.arithmetic import ieee_fp32
from blades_dist.config import ManipulateConfig
from blades_dist.tasks import REGIONS

CONTROL_POINTS = 5  # a side of the warp's control grid


@dataclass(frozen=True)
class Draw:
    """Random decisions for a batch: ``regions`` (B, R) bool, ``warped`` (B,) bool, ``sideways`` (B,) bool (mouth),
    ``offsets`` (B, 2, CONTROL_POINTS, CONTROL_POINTS) in image sides."""

    regions: Tensor
    warped: Tensor
    sideways: Tensor
    offsets: Tensor

    @property
    def labels(self) -> Tensor:
        """(B, 1 + R) int64: 1 if manipulated at all, then one column a region."""
        return torch.cat((self.regions.any(1, keepdim=True), self.regions), dim=1).long()

    def rows(self, part: slice) -> "Draw":
        return Draw(self.regions[part], self.warped[part], self.sideways[part], self.offsets[part])

    def to(self, device: torch.device) -> "Draw":
        """These decisions on ``device``, sent as one message that nobody waits for."""
        if device == self.regions.device:
            return self
        flags = torch.cat((self.regions, self.warped[:, None], self.sideways[:, None]), dim=1).to(self.offsets.dtype)
        packed = torch.cat((flags, self.offsets.flatten(1)), dim=1)
        if device.type == "cuda":
            packed = packed.pin_memory()
        packed = packed.to(device, non_blocking=True)
        count = self.regions.shape[1]
        chosen = packed[:, : count + 2] != 0
        offsets = packed[:, count + 2 :].view(-1, *self.offsets.shape[1:])
        return Draw(chosen[:, :count], chosen[:, count], chosen[:, count + 1], offsets)


def draw(count: int, config: ManipulateConfig, generator: torch.Generator) -> Draw:
    """Decisions for ``count`` samples. A manipulated sample is warped (all regions) or has a random non-empty set of
    regions flipped."""
    manipulated = torch.rand(count, generator=generator) >= config.photographic_share
    warped = manipulated & (torch.rand(count, generator=generator) < config.warp_share)
    subset = torch.randint(1, 2 ** len(REGIONS), (count,), generator=generator)
    flipped = (subset[:, None] >> torch.arange(len(REGIONS))) & 1 == 1
    offsets = torch.rand(count, 2, CONTROL_POINTS, CONTROL_POINTS, generator=generator) * 2 - 1
    return Draw(
        regions=(flipped | warped[:, None]) & manipulated[:, None],
        warped=warped,
        sideways=torch.rand(count, generator=generator) < 0.5,
        offsets=offsets * config.warp_strength,
    )


@ieee_fp32()
def manipulate(images: Tensor, landmarks: Tensor, decisions: Draw) -> Tensor:
    """Applies the decisions. ``images`` (B, 3, S, S) float, ``landmarks`` (B, 5, 2) pixels; a new tensor.

    Samples that are left photographic come back bitwise equal. Positions are computed in fp32 proper: in TF32 they
    would be off by a tenth of a pixel. Never waits for a GPU.
    """
    change = _in_chosen_rows if images.device.type == "cpu" else _everywhere
    decisions = decisions.to(images.device)
    where = {name: decisions.regions[:, i] & ~decisions.warped for i, name in enumerate(REGIONS)}
    out = images.clone()
    for name, centre, size in _boxes(landmarks):
        sideways = decisions.sideways & (name == "mouth")
        out = change(_flip, out, where[name], centre, size, sideways)
    return change(_warp, out, decisions.warped, decisions.offsets.to(images.dtype))


def _in_chosen_rows(operation: Callable[..., Tensor], images: Tensor, chosen: Tensor, *arguments: Tensor) -> Tensor:
    """``images`` with ``operation`` applied to the rows in the mask ``chosen`` (B,); in place."""
    rows = chosen.nonzero().squeeze(1)
    if len(rows):
        images[rows] = operation(images[rows], *(argument[rows] for argument in arguments))
    return images


def _everywhere(operation: Callable[..., Tensor], images: Tensor, chosen: Tensor, *arguments: Tensor) -> Tensor:
    """The same by computing every row, without a look at the mask; a new tensor."""
    return torch.where(chosen[:, None, None, None], operation(images, *arguments), images)


def _boxes(landmarks: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    """Region name, centre (B, 2) and half-size (B, 2) of each box, pixels, from facial proportions."""
    left, right, nose, mouth_left, mouth_right = landmarks.unbind(1)
    between = (right - left).norm(dim=1, keepdim=True)
    mouth = (mouth_left + mouth_right) / 2
    width = (mouth_right - mouth_left).norm(dim=1, keepdim=True)
    eye = torch.cat((0.34 * between, 0.22 * between), 1)
    bridge = nose - 0.15 * (mouth - nose)
    return [
        ("mouth", mouth, torch.cat((0.72 * width, 0.42 * width), 1)),
        ("eye", left, eye),
        ("eye", right, eye),
        ("nose", bridge, torch.cat((0.30 * between, 0.36 * between), 1)),
    ]


def _flip(images: Tensor, centre: Tensor, half: Tensor, sideways: Tensor) -> Tensor:
    """Mirrors the box about its centre (up-down, or left-right where ``sideways``), blended at its rim.

    The centre is rounded to half pixels, so that mirrored positions are whole pixels: resampling would smooth the
    region and give the manipulation away by that alone.
    """
    side = images.shape[-1]
    centre = (centre * 2).round() / 2
    axis = torch.arange(side, device=images.device, dtype=images.dtype)
    x, y = axis[None, None, :], axis[None, :, None]
    cx, cy = centre[:, 0, None, None], centre[:, 1, None, None]
    side_ = sideways[:, None, None]
    source_x = torch.where(side_, 2 * cx - x, x.expand(len(images), side, side))
    source_y = torch.where(side_, y.expand(len(images), side, side), 2 * cy - y)
    source_x, source_y = (source.clamp(0, side - 1).nan_to_num(0).long() for source in (source_x, source_y))
    index = (source_y * side + source_x).flatten(1)[:, None].expand(-1, images.shape[1], -1)
    mirrored = images.flatten(2).gather(2, index).view_as(images)
    # Superellipse with a soft rim, a quarter of the box wide.
    distance = ((x - cx) / half[:, 0, None, None]) ** 4 + ((y - cy) / half[:, 1, None, None]) ** 4
    mask = ((1 - distance.sqrt().sqrt()) * 4).clamp(0, 1)[:, None]
    mask = mask * mask * (3 - 2 * mask)
    return images + mask * (mirrored - images)


def _warp(images: Tensor, offsets: Tensor) -> Tensor:
    """Moves the control points inside the rim by ``offsets`` (image sides) and the pixels between them linearly."""
    inner = torch.zeros_like(offsets)
    inner[..., 1:-1, 1:-1] = offsets[..., 1:-1, 1:-1]
    flow = F.interpolate(inner, size=images.shape[-2:], mode="bilinear", align_corners=True)
    identity = torch.eye(2, 3, device=images.device, dtype=images.dtype).expand(len(images), 2, 3)
    grid = F.affine_grid(identity, list(images.shape), align_corners=True) + 2 * flow.permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
