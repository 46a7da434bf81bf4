"""Image towers from Hugging Face folders."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2Model, ResNetConfig, ResNetForImageClassification, ResNetModel

from blades_dist.config import ImageTowerConfig
from blades_dist.distributed import World
from blades_dist.models.image import PRESETS, build_image_tower


@pytest.mark.parametrize("kind", [ResNetModel, ResNetForImageClassification])
def test_a_hugging_face_folder_loads(tmp_path: Path, kind: type) -> None:
    saved = kind(ResNetConfig(**PRESETS["resnet_tiny"]))
    saved.save_pretrained(tmp_path)
    tower = build_image_tower(ImageTowerConfig(pretrained=str(tmp_path)), 8, "sync", World())
    expected = saved.base_model.state_dict()
    found = tower.backbone.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert tower(torch.rand(2, 3, 32, 32)).shape == (2, 8)


def test_a_folder_of_another_kind_or_without_all_weights_is_refused(tmp_path: Path) -> None:
    GPT2Model(GPT2Config(vocab_size=5, n_embd=4, n_layer=1, n_head=1)).save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="a model of type 'gpt2'; expected resnet"):
        build_image_tower(ImageTowerConfig(pretrained=str(tmp_path / "text")), 8, "sync", World())
    ResNetModel(ResNetConfig(**PRESETS["resnet_tiny"])).save_pretrained(tmp_path / "deeper")
    ResNetConfig(**{**PRESETS["resnet_tiny"], "depths": [1, 2, 1, 1]}).save_pretrained(tmp_path / "deeper")
    with pytest.raises(ValueError, match=r"lacks weights of ResNetModel: encoder\.stages\.1\.layers\.1"):
        build_image_tower(ImageTowerConfig(pretrained=str(tmp_path / "deeper")), 8, "sync", World())
