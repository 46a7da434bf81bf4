"""Manipulations: what moves, what must not, and labels that tell the truth."""

import pytest
import torch

from blades_dist.config import ManipulateConfig
from blades_dist.manipulate import draw, manipulate
from blades_dist.tasks import REGIONS
from tests.problems import LANDMARKS, SIDE


def faces(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(rows, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)), LANDMARKS.expand(rows, 5, 2)


def decisions(rows: int, **values: float):  # type: ignore[no-untyped-def]
    return draw(rows, ManipulateConfig(**values), torch.Generator().manual_seed(1))


def test_labels_say_what_was_done() -> None:
    images, landmarks = faces(200)
    chosen = decisions(200)
    changed = (manipulate(images, landmarks, chosen) != images).flatten(1).any(1)
    assert torch.equal(changed, chosen.labels[:, 0] == 1)
    assert torch.equal(chosen.labels[:, 1:].any(1), chosen.labels[:, 0] == 1)
    assert chosen.labels[chosen.warped].all(), "a warp moves every region"


def test_shares_are_the_configured_ones() -> None:
    chosen = decisions(20_000, photographic_share=0.3, warp_share=0.25)
    manipulated = chosen.labels[:, 0].float().mean()
    assert manipulated == pytest.approx(0.7, abs=0.02)
    assert chosen.warped.float().mean() == pytest.approx(0.7 * 0.25, abs=0.02)
    assert chosen.labels[~chosen.warped & (chosen.labels[:, 0] == 1), 1:].float().mean() == pytest.approx(
        4 / 7, abs=0.02
    )


@pytest.mark.parametrize("region", REGIONS)
def test_a_flip_stays_in_its_region(region: str) -> None:
    images, landmarks = faces(40)
    chosen = decisions(40, photographic_share=0.0, warp_share=0.0)
    only = torch.zeros_like(chosen.regions)
    only[:, REGIONS.index(region)] = True
    object.__setattr__(chosen, "regions", only)
    moved = (manipulate(images, landmarks, chosen) != images).any(1).any(0)
    rows, columns = moved.nonzero().unbind(1)
    x, y = {"mouth": (32, 48), "eye": (32, 25), "nose": (32, 36)}[region]
    assert moved.any()
    assert abs(rows.float().mean() - y) < 4 and abs(columns.float().mean() - x) < 4
    assert moved.float().mean() < 0.25


def test_a_full_flip_uses_original_pixels_only() -> None:
    """Resampling would smooth the region; a mirrored pixel must be one of the original ones."""
    images, landmarks = faces(1)
    chosen = decisions(1, photographic_share=0.0, warp_share=0.0)
    object.__setattr__(chosen, "regions", torch.tensor([[False, True, False]]))
    out = manipulate(images, landmarks, chosen)
    x, y = (int(value) for value in LANDMARKS[0])
    assert torch.equal(out[0, :, y + 2, x], images[0, :, y - 2, x])


def test_the_same_seed_gives_the_same_pixels() -> None:
    images, landmarks = faces(16)
    first, second = (manipulate(images, landmarks, decisions(16)) for _ in range(2))
    assert torch.equal(first, second)
