"""Weights in torchvision's layout: names both ways, numbers against a plain forward, files, and refusals."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import ResNetConfig, ResNetModel

from blades_dist.config import ImageTowerConfig
from blades_dist.distributed import World
from blades_dist.models.convert import State, load_torchvision, to_torchvision, to_transformers
from blades_dist.models.image import PRESETS, ImageTower, build_image_tower

SMALL_BOTTLENECK = {"embedding_size": 8, "hidden_sizes": [16, 32, 64, 128], "depths": [2, 1, 3, 1]}


def random_resnet(seed: int = 0, **config: Any) -> ResNetModel:
    """With statistics and scales as after training: all different, so that a swapped pair shows."""
    torch.manual_seed(seed)
    model = ResNetModel(ResNetConfig(**config))
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "normalization" in name and value.is_floating_point():
                value.uniform_(0.5, 1.5)
    return model


def forward(state: State, images: Tensor, kernels: int) -> Tensor:
    """A ResNet in evaluation mode straight from torchvision's names: ``kernels`` convolutions a block."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt() * weight[:, None, None] + bias[
            :, None, None
        ]

    x = F.relu(norm(F.conv2d(images, state["conv1.weight"], stride=2, padding=3), "bn1"))
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for stage in (1, 2, 3, 4):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y, strided = x, False
            for place in range(1, kernels + 1):
                weight = state[f"{name}.conv{place}.weight"]
                here = stride if weight.shape[-1] == 3 and not strided else 1  # the block's first 3 x 3
                strided = strided or weight.shape[-1] == 3
                y = norm(F.conv2d(y, weight, stride=here, padding=weight.shape[-1] // 2), f"{name}.bn{place}")
                y = F.relu(y) if place < kernels else y
            if f"{name}.downsample.0.weight" in state:
                x = norm(F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1")
            x, block = F.relu(x + y), block + 1
    return x.mean((2, 3))


def tower(weights: Path, preset: str = "resnet_tiny", embed_dim: int = 16) -> ImageTower:
    config = ImageTowerConfig.model_validate({"preset": preset, "weights": weights})
    return build_image_tower(config, embed_dim, "frozen", World())


@pytest.mark.parametrize("config", [PRESETS["resnet50"], PRESETS["resnet_small"], SMALL_BOTTLENECK])
def test_both_ways_is_the_identity(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        ours = ResNetModel(ResNetConfig(**config)).state_dict()
    head = {"weight": torch.ones(3, 2), "bias": torch.ones(3)}
    theirs = to_torchvision(ours, head)
    assert {"conv1.weight", "bn1.running_var", "layer2.0.downsample.1.bias", "layer4.0.conv2.weight", "fc.bias"} <= set(
        theirs
    )
    back, fc = to_transformers(theirs)
    assert list(back) == list(ours) and all(back[name] is ours[name] for name in ours)
    assert fc == head


@pytest.mark.parametrize(("config", "kernels"), [(SMALL_BOTTLENECK, 3), (PRESETS["resnet_small"], 2)])
def test_a_converted_tower_computes_what_the_layout_means(config: dict[str, Any], kernels: int) -> None:
    model = random_resnet(**config).double().eval()
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = forward(to_torchvision(model.state_dict()), images, kernels)
        found = model(images).pooler_output.flatten(1)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_resnet50_weights_load_from_a_checkpoint_of_a_larger_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The form of the EXIF-as-language checkpoint: under 'model', beside a text model, fc as the projection."""
    state = to_torchvision(random_resnet().state_dict(), {"weight": torch.rand(16, 2048), "bias": torch.rand(16)})
    wrapped = {f"module.model.visual.{name}": value for name, value in state.items() if "num_batches" not in name}
    torch.save(
        {"model": {**wrapped, "module.model.transformer.conv.weight": torch.ones(2)}, "epoch": 3}, tmp_path / "x.pth"
    )
    with caplog.at_level(logging.INFO):
        found = tower(tmp_path / "x.pth", "resnet50").double().eval()
    assert "its fc is the projection" in caplog.text
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    exact = {name: value.double() for name, value in state.items()}
    with torch.no_grad():
        features = forward(exact, (images - found.mean) / found.std, 3)
        expected = F.linear(features, exact["fc.weight"], exact["fc.bias"])
        torch.testing.assert_close(found(images), expected, rtol=1e-10, atol=1e-10)


def test_safetensors_load_and_a_classifier_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = random_resnet(**PRESETS["resnet_tiny"])
    state = to_torchvision(model.state_dict(), {"weight": torch.rand(1000, 192), "bias": torch.rand(1000)})
    save_file(state, tmp_path / "x.safetensors")
    with caplog.at_level(logging.INFO):
        found = tower(tmp_path / "x.safetensors")
    assert "its fc has 1000 outputs, so the projection starts fresh" in caplog.text
    assert all(torch.equal(value, found.backbone.state_dict()[name]) for name, value in model.state_dict().items())


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = to_torchvision(random_resnet(**PRESETS["resnet_tiny"]).state_dict())
    path = tmp_path / "x.safetensors"

    def refused(changed: State, message: str, preset: str = "resnet_tiny") -> None:
        save_file(changed, path)
        with pytest.raises(ValueError, match=message):
            tower(path, preset)

    refused(state, r"conv1.weight is \(24, 3, 7, 7\), this tower has \(64, 3, 7, 7\)", "resnet50")
    refused({name: value for name, value in state.items() if "layer4" not in name}, r"missing layer4\.0\.")
    refused({**state, "layer1.1.conv1.weight": torch.ones(2)}, r"unexpected layer1\.1\.conv1\.weight")
    refused({**state, "attnpool.weight": torch.ones(2)}, r"unexpected attnpool\.weight")
    refused({"text.weight": torch.ones(2)}, r"conv1\.weight is missing; it has text\.weight")
    both = {f"{prefix}.{name}": value.clone() for prefix in "ab" for name, value in state.items()}
    refused(both, r"several ResNets, under 'a\.', 'b\.'")


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_torchvision(tmp_path / "none.pth")
    (tmp_path / "x.npz").touch()
    with pytest.raises(ValueError, match=r"expected \.safetensors, \.pt or \.pth"):
        load_torchvision(tmp_path / "x.npz")
    torch.save({"state_dict": {"conv1.weight": torch.ones(1)}, "on_load": partial(print, "run")}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="more than tensors and plain values"):
        load_torchvision(tmp_path / "x.pth")
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"x\.safetensors is damaged"):
        load_torchvision(tmp_path / "x.safetensors")
