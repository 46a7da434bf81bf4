"""Encoders: seeds, padding, BatchNorm modes, and the frozen form that detectors load."""

from pathlib import Path

import pytest
import torch
from torch import nn

from blades_dist.bilevel.reduce import World
from blades_dist.config import TextTowerConfig
from blades_dist.models.batchnorm import BatchNorm2d, replace_batchnorm, still_statistics
from blades_dist.models.export import freeze, load_encoder, save_encoder
from blades_dist.models.text import build_text_tower
from blades_dist.tasks import task_set
from tests.problems import small_model


def test_equal_seeds_give_equal_parameters_whatever_was_drawn_before() -> None:
    first = small_model()
    torch.rand(7)
    state = torch.random.get_rng_state()
    second = small_model()
    assert torch.equal(torch.random.get_rng_state(), state), "building a model must not draw from the global generator"
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_longer_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    tower = build_text_tower(TextTowerConfig(layers=2, width=32, heads=4), task_set().prompts, 16).double()
    short = tower()
    longer = nn.Embedding(77, 32).double()
    with torch.no_grad():
        longer.weight[: tower.tokens.shape[1]] = tower.backbone.wpe.weight
    tower.backbone.wpe = longer
    tower.tokens = torch.cat((tower.tokens, torch.zeros(len(tower.tokens), 77 - tower.tokens.shape[1]).long()), dim=1)
    torch.testing.assert_close(tower(), short, rtol=0, atol=1e-12)


def test_every_prompt_has_its_own_tokens() -> None:
    tower = build_text_tower(TextTowerConfig(layers=1, width=8, heads=1), task_set(flash=True).prompts, 4)
    assert len(set(map(tuple, tower.tokens.tolist()))) == task_set(flash=True).width
    assert tower.tokens.shape[1] <= 20


def test_batchnorm_equals_torchs_and_can_stand_still() -> None:
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.BatchNorm2d(3))
    ours = nn.Sequential(nn.BatchNorm2d(3))
    replace_batchnorm(ours, "sync", World())
    assert isinstance(ours[0], BatchNorm2d)
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours[0].running_var, theirs[0].running_var)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with still_statistics(ours):
        ours(torch.randn(4, 3, 5, 5))
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    frozen = nn.Sequential(nn.BatchNorm2d(3))
    replace_batchnorm(frozen, "frozen", World())
    assert torch.equal(frozen(x), frozen.eval()(x))


@pytest.mark.parametrize("highpass", [0.0, 6.0])
def test_a_frozen_encoder_gives_the_models_logits(tmp_path: Path, highpass: float) -> None:
    model = small_model(highpass=highpass).eval()
    save_encoder(freeze(model, task_set(), 64, {"from": "a test"}), tmp_path)
    encoder = load_encoder(tmp_path)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = model(images.float() / 255)
    torch.testing.assert_close(encoder.logits(encoder.features(images)), expected, rtol=0, atol=1e-5)
    assert encoder.columns("face_coarse") == task_set().columns["face_coarse"]
    with pytest.raises(ValueError, match=r"expected uint8 images \(B, 3, 64, 64\)"):
        encoder.features(images[..., :32])


def test_a_damaged_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"encoder\.json is missing"):
        load_encoder(tmp_path)
    save_encoder(freeze(small_model(), task_set(), 64, {}), tmp_path)
    whole = (tmp_path / "encoder.safetensors").read_bytes()
    (tmp_path / "encoder.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"encoder\.safetensors is damaged"):
        load_encoder(tmp_path)
