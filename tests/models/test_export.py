"""The frozen form that detectors load."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import ResNetConfig, ResNetModel

from blades_dist.data.read import decoded, resize_into
from blades_dist.models.encoder_info import migrate
from blades_dist.models.export import (
    EncoderInfo,
    FrozenEncoder,
    encoder_digest,
    freeze,
    load_encoder,
    open_encoder,
    save_encoder,
)
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


VERSION_1 = {
    "schema_version": 1,
    "image_size": 64,
    "embed_dim": 32,
    "backbone": {"model_type": "resnet", "depths": [1, 1, 1, 1]},
    "classes": {"face_coarse": ["photographic", "manipulated"]},
    "provenance": {},
}


def small_encoder() -> FrozenEncoder:
    return freeze(small_model(), task_set(), 64, {"from": "a test"})


def edit(folder: Path, **values: Any) -> None:
    content = json.loads((folder / "encoder.json").read_text())
    (folder / "encoder.json").write_text(json.dumps({**content, **values}))


def test_a_description_of_version_1_is_migrated() -> None:
    before = json.dumps(VERSION_1)
    info = EncoderInfo.model_validate(migrate(VERSION_1))
    assert (info.resize, info.tower, info.normalise) == ("area", "resnet_projection", True)
    assert json.dumps(VERSION_1) == before and migrate(info.model_dump()) == info.model_dump()
    with pytest.raises(ValueError, match="version 3; this code reads versions 1 to 2"):
        migrate({**VERSION_1, "schema_version": 3})


def test_a_folder_of_version_1_gives_the_same_features(tmp_path: Path) -> None:
    encoder = small_encoder()
    save_encoder(encoder, tmp_path)
    digest = encoder_digest(tmp_path)
    content = json.loads((tmp_path / "encoder.json").read_text())
    older = {key: content[key] for key in VERSION_1} | {"schema_version": 1}
    (tmp_path / "encoder.json").write_text(json.dumps(older))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    loaded = open_encoder(tmp_path)
    assert torch.equal(loaded.features(images), F.normalize(encoder.image(images.float() / 255), dim=-1))
    assert encoder_digest(tmp_path) == digest == encoder_digest(loaded)


@pytest.mark.parametrize("side", [40, 64, 150])
def test_crops_are_prepared_as_shards_are_read(side: int) -> None:
    crop = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    expected = np.empty((3, 64, 64), np.uint8)
    resize_into(expected, decoded(cv2.imencode(".png", crop[..., ::-1])[1]))
    prepared = small_encoder().prepare(crop)
    assert prepared.dtype == np.uint8 and np.array_equal(prepared, expected)


@pytest.mark.parametrize(("how", "antialias"), [("bilinear", False), ("bilinear_antialias", True)])
def test_float_crops_for_encoders_that_resize_tensors(how: str, antialias: bool) -> None:
    ours = small_encoder()
    encoder = FrozenEncoder(ours.info.model_copy(update={"resize": how, "normalise": False}), ours.image)
    crop = np.random.default_rng(1).integers(0, 256, (97, 97, 3), np.uint8)
    tensor = torch.tensor(crop).permute(2, 0, 1)[None].float() / 255
    expected = F.interpolate(tensor, (64, 64), mode="bilinear", antialias=antialias)
    prepared = torch.tensor(encoder.prepare(crop))[None]
    torch.testing.assert_close(prepared, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(encoder.features(prepared), ours.image(expected), rtol=0, atol=0)
    with pytest.raises(ValueError, match="expected float32 images"):
        encoder.features(prepared.to(torch.uint8))
    with pytest.raises(ValueError, match="expected a crop"):
        encoder.prepare(crop[..., 0])


def test_the_digest_covers_weights_and_description_but_not_provenance(tmp_path: Path) -> None:
    save_encoder(small_encoder(), tmp_path)
    digest = encoder_digest(tmp_path)
    edit(tmp_path, provenance={"other": 1})
    assert encoder_digest(tmp_path) == digest
    found = {digest}
    for values in ({"resize": "bilinear"}, {"normalise": False}, {"image_size": 96}):
        edit(tmp_path, **values)
        found.add(encoder_digest(tmp_path))
    state = load_file(tmp_path / "encoder.safetensors")
    state["image.project.bias"][3] += 1e-6
    save_file(state, tmp_path / "encoder.safetensors")
    found.add(encoder_digest(tmp_path))
    assert len(found) == 5


def test_a_description_that_builds_nothing_is_named(tmp_path: Path) -> None:
    save_encoder(small_encoder(), tmp_path)
    for values, message in (
        ({"tower": "huggingface", "backbone": {"model_type": "no_such"}}, "no network that can be built"),
        ({"tower": "huggingface", "backbone": {"model_type": "bert"}}, "takes input_ids"),
        ({"tower": "huggingface", "backbone": {"model_type": "vit", "attn_implementation": "x/y"}}, "cannot be set"),
        ({"backbone": {"model_type": "resnet", "layer_type": "odd"}}, "no network that can be built"),
        ({"resize": "nearest"}, "resize"),
        ({"schema_version": 9}, "version 9"),
        ({"classes": {"face_coarse": ["one"]}}, r"text_features of shape \(50, 32\), expected \(1, 32\)"),
    ):
        edit(tmp_path, **values)
        with pytest.raises(ValueError, match=message):
            load_encoder(tmp_path)
        save_encoder(small_encoder(), tmp_path)
    (tmp_path / "encoder.json").write_text("[]")
    with pytest.raises(ValueError, match=r"encoder\.json is not an encoder description"):
        load_encoder(tmp_path)
