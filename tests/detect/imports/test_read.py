"""Imports of other published detectors, telling formats apart, and the job."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.special import expit
from transformers import CLIPConfig, CLIPModel

from blades_dist.config import ImportConfig
from blades_dist.detect.imports.folder import Imported, load_import, save_import
from blades_dist.detect.imports.read import read_import
from tests.detect.imports import published
from tests.detect.imports.published import crops_of, normalised, resnet50, resnet50_forward
from tests.jobs import run_job

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def imported(path: Path, **values: Any) -> Imported:
    found = read_import(ImportConfig(checkpoint=path, output=path.parent / "out", **values))
    save_import(found, path.parent / "out")
    return load_import(path.parent / "out")


def vision_tower() -> published.VisionTower:
    torch.manual_seed(4)
    tower = published.VisionTower(side=32, patch=8, width=64, layers=2, out=24)
    published.scramble(tower, 6)
    return tower


def test_cnndetection_gives_its_probabilities(tmp_path: Path) -> None:
    state = resnet50(1, seed=1)
    torch.save({"model": state, "total_steps": 9}, tmp_path / "blur_jpg_prob0.5.pth")
    found = imported(tmp_path / "blur_jpg_prob0.5.pth")
    assert (found.kind, found.head_kind) == ("cnndetection", "linear") and found.head is not None
    crops = crops_of(224, 224)  # at its own size nothing is resized, so this is its authors' computation
    expected = resnet50_forward(state, normalised(torch.tensor(np.stack(crops)).permute(0, 3, 1, 2) / 255, *IMAGENET))
    images = torch.tensor(np.stack([found.encoder.prepare(crop) for crop in crops]))
    scores = found.head.score(found.encoder.features(images).numpy())
    np.testing.assert_allclose(expit(-scores), expected[:, 0].sigmoid().numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "fc."])
def test_univfd_is_a_linear_head_on_clip(tmp_path: Path, prefix: str) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 1}
    clip = CLIPModel(
        CLIPConfig(
            text_config={**sizes, "vocab_size": 10},
            vision_config={**sizes, "image_size": 32, "patch_size": 16, "projection_dim": 24},
            projection_dim=24,
        )
    ).eval()
    clip.save_pretrained(tmp_path / "clip")
    weight, bias = torch.randn(1, 24) * 0.1, torch.randn(1)
    torch.save({f"{prefix}weight": weight, f"{prefix}bias": bias}, tmp_path / "fc_weights.pth")
    with pytest.raises(ValueError, match="clip: a univfd head needs"):
        imported(tmp_path / "fc_weights.pth")
    found = imported(tmp_path / "fc_weights.pth", clip=str(tmp_path / "clip"))
    assert (found.kind, found.head_kind) == ("univfd", "linear") and found.head is not None
    crops = crops_of(32, 32, 32)
    pixels = normalised(torch.tensor(np.stack(crops)).permute(0, 3, 1, 2) / 255)
    with torch.no_grad():
        embedded = clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)
    images = torch.tensor(np.stack([found.encoder.prepare(crop) for crop in crops]))
    scores = found.head.score(found.encoder.features(images).numpy())
    np.testing.assert_allclose(-scores, (embedded @ weight[0] + bias).numpy(), rtol=0, atol=1e-5)
    torch.save({"weight": torch.randn(1, 768), "bias": bias}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: expected one logit on 24 features"):
        imported(tmp_path / "other.pth", clip=str(tmp_path / "clip"))


def test_a_clip_in_openais_layout_gives_its_image_embeddings(tmp_path: Path) -> None:
    tower = vision_tower()
    state = {f"visual.{name}": value for name, value in tower.state_dict().items()}
    text = {"positional_embedding": torch.ones(77, 64), "logit_scale": torch.tensor(1.0)}
    torch.save({"state_dict": {**state, **text}}, tmp_path / "FaRL.pth")
    found = imported(tmp_path / "FaRL.pth")
    assert (found.kind, found.head, found.encoder.info.image_size) == ("clip", None, 32)
    crops = crops_of(50, 32)
    resized = [Image.fromarray(crop).resize((32, 32), Image.Resampling.BICUBIC) for crop in crops]
    pixels = torch.tensor(np.stack([np.asarray(each) for each in resized])).permute(0, 3, 1, 2) / 255
    expected = F.normalize(tower(normalised(pixels)), dim=1)
    images = torch.tensor(np.stack([found.encoder.prepare(crop) for crop in crops]))
    torch.testing.assert_close(found.encoder.features(images), expected, rtol=0, atol=1e-5)


def test_files_and_options_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = {f"visual.{name}": value for name, value in vision_tower().state_dict().items()}

    def refused(state: dict[str, torch.Tensor], message: str, **values: Any) -> None:
        torch.save(state, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=message):
            imported(tmp_path / "x.pth", **values)

    refused({"a.weight": torch.ones(2)}, "of no known layout")
    refused(state, "no blades_oc checkpoint; it looks like clip", format="blades_oc")
    refused(state, "tokenizer: not used by a checkpoint of format clip", tokenizer="somewhere")
    refused({**state, "visual.odd": torch.ones(1)}, r"x\.pth: .*unexpected odd")
    refused({name: value for name, value in state.items() if "ln_pre.bias" not in name}, r"missing ln_pre\.bias")
    refused({**state, "visual.ln_pre.bias": torch.ones(3)}, "shapes of a CLIP tower")
    refused(resnet50(2), r"one logit on 2048 features.*\(2, 2048\)", format="cnndetection")


def test_the_job_writes_what_it_says(tmp_path: Path) -> None:
    torch.save({f"visual.{n}": v for n, v in vision_tower().state_dict().items()}, tmp_path / "tower.pth")
    done = run_job("import_checkpoint.py", tmp_path / "tower.pth", f"output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "tower.pth as clip: encoder of 24 features at 32 pixels, head: none" in done.stdout
    assert load_import(tmp_path / "out").encoder.info.provenance["file"] == "tower.pth"
    with pytest.raises(FileNotFoundError, match=r"no\.pth: no such file"):
        imported(tmp_path / "no.pth")
