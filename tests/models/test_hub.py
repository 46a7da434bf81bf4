"""Hugging Face image models as feature extractors: folders with random weights, saved and loaded as encoders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from blades_dist.models.export import encoder_digest, load_encoder, open_encoder, save_encoder
from blades_dist.models.image import PRESETS

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
CLIP = CLIPConfig(
    text_config={**SMALL, "vocab_size": 20},
    vision_config={**SMALL, "image_size": 32, "patch_size": 16, "projection_dim": 12},
    projection_dim=12,
)
SWIN = SwinConfig(image_size=32, patch_size=4, window_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2])
MODELS: dict[str, tuple[PreTrainedModel, int]] = {
    "vit": (ViTModel(ViTConfig(**SMALL, image_size=32, patch_size=16)), 16),
    "dinov2": (Dinov2Model(Dinov2Config(**SMALL, image_size=32, patch_size=16)), 16),
    "resnet": (ResNetModel(ResNetConfig(**PRESETS["resnet_tiny"])), 192),
    "convnext": (ConvNextModel(ConvNextConfig(hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], image_size=32)), 16),
    "swin": (
        SwinModel(SWIN),
        16,
    ),
}


def crops(rows: int = 2, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(0, 256, (rows, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", MODELS)
def test_the_pooled_output_is_the_feature_and_survives_saving(tmp_path: Path, name: str) -> None:
    model, width = MODELS[name]
    model.eval().save_pretrained(tmp_path / "hub")
    processor = {"size": {"height": 32, "width": 32}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
    (tmp_path / "hub" / "preprocessor_config.json").write_text(json.dumps(processor))
    encoder = open_encoder(f"hf:{tmp_path / 'hub'}", normalise=False)
    save_encoder(encoder, tmp_path / "encoder")
    loaded = load_encoder(tmp_path / "encoder")
    pixels = (crops().float() / 255 - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor(
        [0.2, 0.3, 0.25]
    ).view(3, 1, 1)
    with torch.no_grad():
        expected = model(pixel_values=pixels).pooler_output.flatten(1)
    assert expected.shape == (2, width) and loaded.info.embed_dim == width
    for each in (encoder, loaded):
        torch.testing.assert_close(each.features(crops()), expected, rtol=1e-5, atol=1e-6)
    assert loaded.logits(loaded.features(crops())).shape == (2, 0) and loaded.info.classes == {}
    assert encoder_digest(tmp_path / "encoder") == encoder_digest(encoder) == encoder_digest(loaded)


def test_clip_gives_its_projected_image_embeddings(tmp_path: Path) -> None:
    model = CLIPModel(CLIP).eval()
    model.save_pretrained(tmp_path / "clip")
    encoder = open_encoder(f"hf:{tmp_path / 'clip'}")
    assert (encoder.info.image_size, encoder.info.resize, encoder.info.embed_dim) == (32, "pil_bicubic", 12)
    assert encoder.info.provenance["preprocessing_from"].startswith("defaults")
    mean, std = torch.tensor(encoder.info.provenance["mean"]), torch.tensor(encoder.info.provenance["std"])
    pixels = (crops().float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        vision = model.vision_model(pixel_values=pixels).pooler_output
        expected = F.normalize(model.visual_projection(vision), dim=-1)
    torch.testing.assert_close(encoder.features(crops()), expected, rtol=1e-5, atol=1e-6)


def test_the_image_processor_says_how_crops_are_resized(tmp_path: Path) -> None:
    MODELS["resnet"][0].save_pretrained(tmp_path)

    def processed(**values: Any) -> Any:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
        return open_encoder(f"hf:{tmp_path}")

    encoder = processed(
        size={"shortest_edge": 48}, crop_size={"height": 40, "width": 40}, do_center_crop=True, resample=2
    )
    assert (encoder.info.image_size, encoder.info.resize) == (40, "pil_bilinear")
    crop = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    expected = np.asarray(Image.fromarray(crop).resize((40, 40), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(encoder.prepare(crop), expected)

    wide = processed(size=32, rescale_factor=1 / 127.5, image_mean=[1, 1, 1], image_std=[1, 1, 1])  # values in -1..1
    same = processed(size=32, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])
    torch.testing.assert_close(wide.features(crops()), same.features(crops()), rtol=1e-6, atol=1e-7)
    for values, message in (
        ({"size": {"height": 32, "width": 64}}, "not that of a square"),
        ({"size": 32, "resample": 9}, "resample 9"),
        ({"size": 32, "rescale_offset": True}, "rescaling"),
    ):
        with pytest.raises(ValueError, match=message):
            processed(**values)


def test_models_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    BertModel(BertConfig(**SMALL, vocab_size=20)).save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="type 'bert' takes input_ids"):
        open_encoder(f"hf:{tmp_path / 'text'}")
    ViTMAEModel(ViTMAEConfig(**SMALL, image_size=32, patch_size=16)).save_pretrained(tmp_path / "mae")
    with pytest.raises(ValueError, match="type 'vit_mae' has no pooled output"):
        open_encoder(f"hf:{tmp_path / 'mae'}")
    ViTForImageClassification(ViTConfig(**SMALL, image_size=32, patch_size=16)).save_pretrained(tmp_path / "class")
    with pytest.raises(ValueError, match=r"lacks weights of ViTModel: pooler\.dense"):
        open_encoder(f"hf:{tmp_path / 'class'}")
    with pytest.raises(OSError, match="nothing-here"):
        open_encoder(f"hf:{tmp_path / 'nothing-here'}")
    with pytest.raises(FileNotFoundError, match="hf:"):
        open_encoder(tmp_path / "text")
