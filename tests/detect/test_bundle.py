import hashlib
import json
import shutil

import httpx
import numpy as np
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors.numpy import load_file, save_file

from blades_dist.detect.detector import CARD, FILES, HEAD, INDEX, Detector, load_detector, save_detector
from blades_dist.detect.info import migrate
from blades_dist.models.encoder_info import DESCRIPTION
from blades_dist.models.export import WEIGHTS
from blades_dist.testing.toy_detector import SIZE, tiny_encoder, toy_detector, unit_rows, write_bundle

KINDS = ("oc", "mahalanobis", "knn", "bc")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    for kind in KINDS:
        write_bundle(folder / kind, kind)
    return folder


@pytest.fixture
def bundle(bundles, tmp_path):
    return shutil.copytree(bundles / "oc", tmp_path / "oc")


def _faces(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, SIZE, SIZE), np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_bitwise(bundles, kind, tmp_path):
    first = load_detector(bundles / kind)
    copy = load_detector(shutil.copytree(bundles / kind, tmp_path / "copy"))
    rows = unit_rows(40, 16)
    scores = first.score(rows)
    assert np.array_equal(scores, copy.score(rows)) and first.id == copy.id
    assert np.array_equal(first.p_values(scores), copy.p_values(scores))
    assert first.threshold() == copy.threshold() == first.info.operating_points[2].threshold
    faces = torch.from_numpy(_faces(3))
    assert torch.equal(first.encoder.features(faces), tiny_encoder().features(faces))
    assert not list((bundles / kind).glob("*.p*")) and {f.name for f in (bundles / kind).iterdir()} == {INDEX, *FILES}


def test_answers_do_not_depend_on_company(bundles):
    detector, faces = load_detector(bundles / "oc"), _faces(7)
    together = detector.detect(faces)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = [load_detector(bundles / "oc").detect(faces[i : i + 1])[0] for i in range(7)]
    finally:
        torch.set_num_threads(threads)
    assert together == alone


@pytest.mark.parametrize("kind", KINDS)
def test_scores_do_not_depend_on_where_arrays_lie(bundles, kind):
    detector = load_detector(bundles / kind)
    rows = unit_rows(1, 16)

    def moved(array, by):
        space = np.empty(array.nbytes + 128, np.uint8)
        begin = -space.ctypes.data % 64 + by
        view = space[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
        view[...] = array
        return view

    expected = detector.score(rows)
    for by in range(0, 64, 8):
        tensors = {name: moved(value, by) for name, value in detector.head.tensors().items()}
        extra = ("full",) if kind == "oc" else ()
        head = type(detector.head).from_tensors(tensors, *extra)
        assert np.array_equal(head.score(moved(rows, by)), expected)


def test_answer_fields(bundles):
    detector, faces = load_detector(bundles / "oc"), _faces(4, seed=2)
    results = detector.detect(faces, [0.05, 0.10, 0.999, 0.0001])
    assert [r.fpr for r in results] == [0.05, 0.10, 0.999, 0.0001]
    for result in results:
        assert result.probability is None and result.re_encoded == {}
        band = result.fpr < result.p_value <= 0.10
        expected = "ai_generated" if result.p_value <= result.fpr else "unsure" if band else "photographic"
        assert result.verdict == expected and bool(result.unsure_because) == (expected == "unsure")
        assert set(result.read_outs) == set(detector.encoder.info.classes)
        for task, values in result.read_outs.items():
            assert all(0 <= v <= 1 for v in values.values())
            assert task == "face_fine" or sum(values.values()) == pytest.approx(1)
    assert results[3].threshold is None and results[3].verdict != "ai_generated"
    features = detector.encoder.features(torch.from_numpy(faces))
    fine = detector.encoder.logits(features)[:, detector.encoder.columns("face_fine")].sigmoid()
    got = [list(r.read_outs["face_fine"].values()) for r in results]
    np.testing.assert_allclose(got, fine.numpy(), atol=1e-5)
    assert detector.detect(faces[:0]) == []
    with pytest.raises(ValueError, match="uint8"):
        detector.detect(faces.astype(np.float32))
    with pytest.raises(ValueError, match=r"119 real faces.*0\.008333"):
        detector.check_fpr(0.001)


@pytest.mark.parametrize("name", [*FILES, INDEX])
def test_missing_file(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        load_detector(bundle)


@pytest.mark.parametrize("name", FILES)
def test_damaged_file(bundle, name):
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"damaged: the sha-256 of {name} is not"):
        load_detector(bundle)


def _edit(bundle, change):
    content = json.loads((bundle / INDEX).read_text())
    change(content)
    (bundle / INDEX).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(schema_version=3), "schema version 3; this code reads versions 1 to 2"),
        (lambda c: c.update(surprise=1), "surprise: Extra inputs"),
        (lambda c: c.pop("labels"), "labels: Field required"),
        (lambda c: c["files"].pop(HEAD), "lists the files"),
        (lambda c: c["operating_points"][2].update(threshold=-1e9), "thresholds are not those"),
        (lambda c: c.update(fpr=0.2), "thresholds are not those"),
        (lambda c: c["preprocessing"].update(image_size=64), "image_size 64 is not the encoder's 32"),
        (lambda c: c["labels"].update(make=["x"]), "label tables differ"),
        (lambda c: c["preprocessing"].update(resize="bilinear"), "resize bilinear is not the encoder's area"),
        (lambda c: c["preprocessing"].update(re_encodings=["jpeg20"]), "has no 'calibration.re_encoded.jpeg20'"),
        (lambda c: c["preprocessing"].update(locator_model="../x"), "expected a file of the bundle"),
        (lambda c: c.update(consistency_tags=["iso"]), "consistency.log_probability is not float64"),
        (lambda c: c.update(covariance="diag"), "do not fit each other"),
        (lambda c: c.update(kind="bc"), "'hidden_weight' is missing"),
    ],
)
def test_altered_index(bundle, change, message):
    _edit(bundle, change)
    with pytest.raises(ValueError, match=message):
        load_detector(bundle)


def test_foreign_folders(bundle, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_detector(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no detector folder"):
        load_detector(tmp_path)
    (bundle / INDEX).write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        load_detector(bundle)
    (bundle / INDEX).write_text("[1]")
    with pytest.raises(ValueError, match="schema version None"):
        load_detector(bundle)


def test_parts_of_two_bundles(bundle, bundles):
    shutil.copy(bundles / "bc" / HEAD, bundle / HEAD)
    with pytest.raises(ValueError, match=f"sha-256 of {HEAD}"):
        load_detector(bundle)


def test_saving_replaces_a_bundle_and_nothing_else(bundle, tmp_path):
    write_bundle(bundle, "bc")
    assert load_detector(bundle).info.kind == "bc"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(ValueError, match="is no detector folder"):
        write_bundle(tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep me"
    assert not list(tmp_path.glob(".*partial"))


def test_card_carries_the_numbers(bundles):
    text, info = (bundles / "oc" / CARD).read_text(), load_detector(bundles / "oc").info
    rate = info.measured(0.05)
    assert f"{rate.count} / {rate.n}" in text and f"{rate.low:.4f} to {rate.high:.4f}" in text
    assert "119 real faces" in text and "too few calibration faces" in text


def test_weights_are_no_pickle(bundle):
    # Digests made to match, so that the reader of the file itself has to refuse.
    torch.save({"x": torch.zeros(2)}, bundle / WEIGHTS)
    _edit(bundle, lambda c: c["files"].update({WEIGHTS: hashlib.sha256((bundle / WEIGHTS).read_bytes()).hexdigest()}))
    with pytest.raises(ValueError, match="damaged"):
        load_detector(bundle)


def test_re_encodings_have_their_say(bundles):
    detector, faces = load_detector(bundles / "oc"), _faces(60, seed=3)
    views = np.stack([faces, _faces(60, seed=4)], axis=1)
    results = detector.detect(views, 0.3)
    verdicts = [result.verdict for result in results]
    assert {"ai_generated", "photographic", "unsure"} <= set(verdicts)
    for result in results:
        low, other = result.p_value <= 0.3, result.re_encoded["jpeg75"] <= 0.3
        assert result.verdict == ("unsure" if low != other else "ai_generated" if low else "photographic")
        assert ("jpeg75" in "".join(result.unsure_because)) == (low != other)
    plain = detector.detect(faces, 0.3)
    flagged = sum(result.verdict == "ai_generated" for result in plain)
    assert sum(verdict == "ai_generated" for verdict in verdicts) <= flagged
    with pytest.raises(ValueError, match="one crop a face, or 2"):
        detector.detect(np.concatenate([views, views], axis=1))


def test_probability_of_heads_that_have_seen_generated_faces(bundles):
    detector, faces = load_detector(bundles / "bc"), _faces(5)
    for result in detector.detect(faces):
        expected = 1 / (1 + np.exp(result.score / detector.head.temperature))
        assert result.probability == pytest.approx(expected, abs=1e-12)


def _as_version_1(bundle):
    """What the bundle would be if the first schema version had written it."""
    content = json.loads((bundle / INDEX).read_text())
    encoder = json.loads((bundle / DESCRIPTION).read_text())
    for name in ("unsure_fpr", "flagged_rate", "unsure_rate", "consistency_tags"):
        del content[name]
    for name in ("resize", "locator_model", "re_encodings", "ordinal_edges"):
        del content["preprocessing"][name]
    del content["training"]["notes"]
    for name in ("resize", "tower", "normalise"):
        del encoder[name]
    content["schema_version"] = encoder["schema_version"] = 1
    points = [point for point in content["operating_points"] if point["fpr"] in (0.001, 0.01, 0.05, 0.1)]
    (bundle / DESCRIPTION).write_text(json.dumps(encoder))
    arrays = load_file(bundle / HEAD)
    save_file(
        {name: value for name, value in arrays.items() if "re_enc" not in name and "cons" not in name}, bundle / HEAD
    )
    import hashlib

    files = {name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in FILES}
    (bundle / INDEX).write_text(json.dumps(content | {"files": files, "operating_points": points}))


def test_bundles_of_version_1_are_read_and_judge_as_they_did(bundle, bundles):
    new, faces = load_detector(bundles / "oc"), _faces(40, seed=5)
    _as_version_1(bundle)
    old = load_detector(bundle)
    assert old.info.schema_version == 2 and old.info.unsure_fpr is None and old.info.preprocessing.re_encodings == ()
    assert old.consistency is None
    for before, now in zip(old.detect(faces, 0.08), new.detect(faces, 0.08), strict=True):
        assert before.score == now.score and before.p_value == now.p_value
        assert before.verdict == ("ai_generated" if now.p_value <= 0.08 else "photographic")
    with pytest.raises(ValueError, match="schema version 9"):
        migrate({"schema_version": 9})


def test_hub_round_trip(bundles, tmp_path, monkeypatch):
    first = load_detector(bundles / "oc")
    first.save_pretrained(tmp_path / "saved")
    assert Detector.from_pretrained(tmp_path / "saved").id == first.id
    assert {file.name for file in (tmp_path / "saved").iterdir()} == {INDEX, *FILES}

    # The hub itself is out of reach here: what would be uploaded, and what a download gives, are real folders.
    sent = {}

    def upload(self, *, repo_id, folder_path, **_):
        sent[repo_id] = shutil.copytree(folder_path, tmp_path / "hub" / repo_id)
        return "https://hub.example/commit"

    monkeypatch.setattr(
        "huggingface_hub.HfApi.create_repo", lambda self, repo_id, **_: type("Url", (), {"repo_id": repo_id})
    )
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    first.push_to_hub("someone/detector")
    monkeypatch.setattr("blades_dist.detect.detector.snapshot_download", lambda name, **_: str(sent[name]))
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", _no_config)
    assert Detector.from_pretrained("someone/detector").id == first.id


def _no_config(**_):
    raise HfHubHTTPError("404", response=httpx.Response(404, request=httpx.Request("GET", "https://hub.example")))


def test_the_locator_travels_with_the_bundle(tmp_path):
    detector = toy_detector()
    model = tmp_path / "face_detection_yunet.onnx"
    model.write_bytes(b"some network")
    shape = detector.info.preprocessing.model_copy(update={"locator": "yunet", "locator_model": "locator.onnx"})
    detector.info = detector.info.model_copy(update={"preprocessing": shape})
    detector.locator_model = model
    save_detector(tmp_path / "bundle", detector)
    loaded = load_detector(tmp_path / "bundle")
    assert loaded.locator_model == tmp_path / "bundle" / "locator.onnx"
    assert loaded.locator_model.read_bytes() == b"some network"
    loaded.locator_model.write_bytes(b"another")
    with pytest.raises(ValueError, match=r"sha-256 of locator\.onnx"):
        load_detector(tmp_path / "bundle")
