"""The frozen form that detectors load."""

from pathlib import Path

import pytest
import torch
from transformers import ResNetConfig, ResNetModel

from blades_dist.models.export import freeze, load_encoder, save_encoder
from blades_dist.models.image import PRESETS
from blades_dist.tasks import task_set
from tests.models.small import small_model


@pytest.mark.parametrize("highpass", [0.0, 6.0])
def test_a_frozen_encoder_gives_the_models_logits(tmp_path: Path, highpass: float) -> None:
    model = small_model({"highpass": highpass}).eval()
    save_encoder(freeze(model, task_set(), 64, {"from": "a test"}), tmp_path)
    encoder = load_encoder(tmp_path)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = model(images.float() / 255)
    torch.testing.assert_close(encoder.logits(encoder.features(images)), expected, rtol=0, atol=1e-5)
    assert encoder.columns("face_coarse") == task_set().columns["face_coarse"]
    with pytest.raises(ValueError, match=r"expected uint8 images \(B, 3, 64, 64\)"):
        encoder.features(images[..., :32])


def test_an_encoder_from_a_hugging_face_folder_is_exported_whole(tmp_path: Path) -> None:
    ResNetModel(ResNetConfig(**PRESETS["resnet_tiny"])).save_pretrained(tmp_path / "resnet")
    model = small_model({"pretrained": str(tmp_path / "resnet")}).eval()
    save_encoder(freeze(model, task_set(), 64, {}), tmp_path / "encoder")
    encoder = load_encoder(tmp_path / "encoder")
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = model(images.float() / 255)
    torch.testing.assert_close(encoder.logits(encoder.features(images)), expected, rtol=0, atol=1e-5)


def test_a_damaged_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"encoder\.json is missing"):
        load_encoder(tmp_path)
    save_encoder(freeze(small_model(), task_set(), 64, {}), tmp_path)
    whole = (tmp_path / "encoder.safetensors").read_bytes()
    (tmp_path / "encoder.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"encoder\.safetensors is damaged"):
        load_encoder(tmp_path)
