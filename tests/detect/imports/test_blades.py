"""The released checkpoints' structure, with random numbers: what is imported equals a direct computation."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scipy.special import expit
from sklearn.mixture import GaussianMixture
from torch import Tensor

from blades_dist.detect.heads.mixture import MixtureHead
from blades_dist.detect.imports.blades import read_released
from blades_dist.detect.imports.folder import load_import, save_import
from blades_dist.tasks import task_set
from tests.detect.imports.published import (
    POSITIONS,
    WIDTH,
    State,
    binary_state,
    crops_of,
    perceptron,
    released_images,
    released_state,
    resnet50_forward,
    text_tower,
)

SIDES = (160, 224, 300, 411)


@pytest.fixture(scope="module")
def oc_state() -> State:
    return released_state()


@pytest.fixture(scope="module")
def direct(oc_state: State) -> Tensor:
    """(4, 768) features as the released code computes them."""
    visual = {
        name.removeprefix("model.visual."): value
        for name, value in oc_state.items()
        if name.startswith("model.visual.")
    }
    features = resnet50_forward(visual, released_images(crops_of(*SIDES)))
    return features / features.norm(dim=1, keepdim=True)


def write_tokenizer(folder: Path) -> Path:
    """A CLIP tokenizer of single bytes: vocabulary of 514 entries, no merges."""
    folder.mkdir()
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def byte_tokens(prompt: str) -> list[int]:
    """Ids of lower-case ASCII text under ``write_tokenizer``'s vocabulary, by hand."""
    ids = [512]
    for word in "".join(f" {letter} " if letter in "-'" else letter for letter in prompt.lower()).split():
        ids += [ord(letter) - 33 for letter in word[:-1]] + [256 + ord(word[-1]) - 33]
    return [*ids, 513]


def test_oc_gives_the_released_features(tmp_path: Path, oc_state: State, direct: Tensor) -> None:
    torch.save({"epoch": 3, "model": oc_state, "optimizer": {"state": {}}}, tmp_path / "OC.pth")
    imported = read_released(tmp_path / "OC.pth")
    assert imported.head is None and imported.kind == "blades_oc" and imported.encoder.info.classes == {}
    save_import(imported, tmp_path / "oc")
    for encoder in (imported.encoder, load_import(tmp_path / "oc").encoder):
        images = torch.tensor(np.stack([encoder.prepare(crop) for crop in crops_of(*SIDES)]))
        found = encoder.features(images)
        torch.testing.assert_close(found, direct, rtol=0, atol=1e-5)
    apart = (direct[0] - direct[1]).abs().max()
    assert apart > 1e-3  # so that 1e-5 says something
    mixture_scores_agree(found.numpy(), direct.numpy())


def mixture_scores_agree(found: np.ndarray, direct: np.ndarray) -> None:
    """Our mixture on our features against scikit-learn's on the direct ones."""
    random = np.random.default_rng(0)
    exact = direct.astype(np.float64)
    rows = np.repeat(exact, 60, 0) + random.normal(0, 0.02, (240, exact.shape[1]))
    theirs = GaussianMixture(2, covariance_type="full", reg_covar=1e-4, random_state=0).fit(rows)
    ours = MixtureHead("full", theirs.weights_, theirs.means_, theirs.precisions_cholesky_)
    np.testing.assert_allclose(ours.score(exact), theirs.score_samples(exact), rtol=1e-9)
    np.testing.assert_allclose(ours.score(found), theirs.score_samples(exact), rtol=1e-5)


def test_without_antialiasing_as_older_torchvision_resized(tmp_path: Path, oc_state: State, direct: Tensor) -> None:
    torch.save(oc_state, tmp_path / "OC.pth")
    encoder = read_released(tmp_path / "OC.pth", resize="bilinear").encoder
    visual = {n.removeprefix("model.visual."): v for n, v in oc_state.items() if n.startswith("model.visual.")}
    expected = F.normalize(resnet50_forward(visual, released_images(crops_of(*SIDES), antialias=False)), dim=1)
    found = encoder.features(torch.tensor(np.stack([encoder.prepare(crop) for crop in crops_of(*SIDES)])))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found[3] - direct[3]).abs().max() > 1e-4


@pytest.mark.parametrize(("column", "wrapper"), [(1, "model"), (0, "state_dict")])
def test_bc_gives_the_released_probabilities(
    tmp_path: Path, oc_state: State, direct: Tensor, column: int, wrapper: str
) -> None:
    state = {f"module.{name}": value for name, value in binary_state(oc_state).items()}
    torch.save({wrapper: state}, tmp_path / "BC.pth")
    save_import(read_released(tmp_path / "BC.pth", generated_column=column), tmp_path / "bc")
    imported = load_import(tmp_path / "bc")
    assert imported.kind == "blades_bc" and imported.head_kind == "bc" and imported.head is not None
    layers = perceptron()
    hidden = F.relu(F.linear(direct, layers["fc1.weight"], layers["fc1.bias"]))
    expected = F.linear(hidden, layers["fc2.weight"], layers["fc2.bias"]).softmax(1)[:, column]
    images = np.stack([imported.encoder.prepare(crop) for crop in crops_of(*SIDES)])
    scores = imported.head.score(imported.encoder.features(torch.tensor(images)).numpy())
    np.testing.assert_allclose(expit(-scores), expected.numpy(), rtol=0, atol=1e-5)


def test_pretext_read_outs_come_with_a_tokenizer(tmp_path: Path, oc_state: State, direct: Tensor) -> None:
    torch.save(oc_state, tmp_path / "OC.pth")
    encoder = read_released(tmp_path / "OC.pth", tokenizer=str(write_tokenizer(tmp_path / "tokenizer"))).encoder
    prompts = [byte_tokens(prompt) for prompt in task_set().prompts]
    padded = torch.zeros(len(prompts), POSITIONS, dtype=torch.long)
    for row, ids in enumerate(prompts):
        padded[row, : len(ids)] = torch.tensor(ids)
    text = F.linear(text_tower()(padded), oc_state["model.text_fc.weight"], oc_state["model.text_fc.bias"])
    expected = torch.tensor(2.7).exp() * direct @ F.normalize(text, dim=1).T
    images = torch.tensor(np.stack([encoder.prepare(crop) for crop in crops_of(*SIDES)]))
    torch.testing.assert_close(encoder.logits(encoder.features(images)), expected, rtol=0, atol=1e-4)
    assert encoder.columns("face_coarse") == task_set().columns["face_coarse"]


def test_what_is_not_of_this_layout_is_named(tmp_path: Path, oc_state: State) -> None:
    path = tmp_path / "x.pth"

    def refused(state: State, message: str, **options: str) -> None:
        torch.save(state, path)
        with pytest.raises(ValueError, match=message):
            read_released(path, **options)

    without = {name: value for name, value in oc_state.items() if "layer4.2.conv3" not in name}
    refused(without, r"x\.pth: .*missing layer4\.2\.conv3\.weight")
    refused({**oc_state, "model.extra.weight": torch.ones(1)}, r"unexpected model\.extra\.weight")
    refused({**oc_state, "head.weight": torch.ones(1)}, r"unexpected head\.weight")
    refused({**oc_state, "model.visual.fc.weight": torch.ones(512, 2048)}, r"visual\.fc must map 2048 to 768")
    binary = binary_state(oc_state)
    refused({name: value for name, value in binary.items() if name != "fc2.bias"}, r"fc2\.bias is missing")
    refused({**binary, "fc1.weight": torch.ones(1536, 512)}, r"perceptron's shapes")
    tokenizer = str(write_tokenizer(tmp_path / "tokenizer"))
    gone = "model.transformer.resblocks.1.ln_2.bias"
    refused(
        {name: value for name, value in oc_state.items() if name != gone},
        r"text tower.*missing transformer\.resblocks\.1\.ln_2\.bias",
        tokenizer=tokenizer,
    )
    few = {**oc_state, "model.token_embedding.weight": torch.ones(100, WIDTH)}
    refused(few, "not this CLIP's tokenizer", tokenizer=tokenizer)
    torch.save({"model": oc_state, "hook": partial(print, "run")}, path)
    with pytest.raises(ValueError, match="more than tensors and plain values"):
        read_released(path)


def test_a_damaged_import_is_named(tmp_path: Path, oc_state: State) -> None:
    torch.save(binary_state(oc_state), tmp_path / "BC.pth")
    folder = tmp_path / "bc"
    save_import(read_released(tmp_path / "BC.pth"), folder)
    with pytest.raises(FileNotFoundError, match=r"import\.json is missing"):
        load_import(tmp_path)
    with pytest.raises(ValueError, match="is no import"):
        save_import(read_released(tmp_path / "BC.pth"), tmp_path)
    tensors = load_file(folder / "head.safetensors")
    save_file({**tensors, "out_bias": tensors["out_bias"][:1].clone()}, folder / "head.safetensors")
    with pytest.raises(ValueError, match=r"head\.safetensors is damaged"):
        load_import(folder)
    description = json.loads((folder / "encoder" / "encoder.json").read_text())
    (folder / "encoder" / "encoder.json").write_text(json.dumps({**description, "resize": "bilinear"}))
    with pytest.raises(ValueError, match="changed after the import"):
        load_import(folder)
