"""Manipulations: what moves, what must not, and labels that tell the truth."""

import pytest
import torch

import blades_dist.manipulate as manipulations
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


def test_masks_give_the_pixels_that_chosen_rows_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU computes every row and chooses; the CPU computes the chosen ones."""
    images, landmarks = faces(40)
    landmarks = landmarks + 3 * torch.randn(40, 5, 2, generator=torch.Generator().manual_seed(3))
    chosen = decisions(40, photographic_share=0.3)
    expected = manipulate(images, landmarks, chosen)
    monkeypatch.setattr(manipulations, "_in_chosen_rows", manipulations._everywhere)
    assert torch.equal(manipulate(images, landmarks, chosen), expected)


def test_decisions_are_sent_whole() -> None:
    """Through the packed message, to a device without data of its own: shapes and types; and back on a real one."""
    chosen = decisions(5)
    there = chosen.to(torch.device("meta"))
    for name in ("regions", "warped", "sideways", "offsets"):
        before, after = getattr(chosen, name), getattr(there, name)
        assert (before.shape, before.dtype) == (after.shape, after.dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_gives_the_cpus_pixels_without_a_wait() -> None:
    images, landmarks = faces(40)
    chosen, device = decisions(40), torch.device("cuda")
    there = chosen.to(device)
    for name in ("regions", "warped", "sideways", "offsets"):
        assert torch.equal(getattr(there, name).cpu(), getattr(chosen, name)), name
    arguments = (images.to(device), landmarks.to(device), chosen)
    manipulate(*arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = manipulate(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), manipulate(images, landmarks, chosen), rtol=0, atol=1e-5)


def test_the_same_seed_gives_the_same_pixels() -> None:
    images, landmarks = faces(16)
    first, second = (manipulate(images, landmarks, decisions(16)) for _ in range(2))
    assert torch.equal(first, second)
