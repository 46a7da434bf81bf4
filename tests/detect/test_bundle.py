import json
import shutil

import numpy as np
import pytest
import torch
from toy_detector import SIZE, tiny_encoder, unit_rows, write_bundle

from blades_dist.detect.bundle import CARD, FILES, HEAD, INDEX, load_detector
from blades_dist.models.export import WEIGHTS


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    for kind in ("oc", "bc"):
        write_bundle(folder / kind, kind)
    return folder


@pytest.fixture
def bundle(bundles, tmp_path):
    return shutil.copytree(bundles / "oc", tmp_path / "oc")


def _faces(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, SIZE, SIZE), np.uint8)


@pytest.mark.parametrize("kind", ["oc", "bc"])
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


@pytest.mark.parametrize("kind", ["oc", "bc"])
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
        extra = () if kind == "bc" else ("full",)
        head = type(detector.head).from_tensors(tensors, *extra)
        assert np.array_equal(head.score(moved(rows, by)), expected)


def test_answer_fields(bundles):
    detector, faces = load_detector(bundles / "oc"), _faces(4, seed=2)
    results = detector.detect(faces, [0.05, 0.10, 0.999, 0.0001])
    assert [r.fpr for r in results] == [0.05, 0.10, 0.999, 0.0001]
    for result in results:
        assert (result.verdict == "ai_generated") == (result.p_value <= result.fpr)
        assert set(result.read_outs) == set(detector.encoder.info.classes)
        for task, values in result.read_outs.items():
            assert all(0 <= v <= 1 for v in values.values())
            assert task == "face_fine" or sum(values.values()) == pytest.approx(1)
    assert results[3].threshold is None and results[3].verdict == "photographic"
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
        (lambda c: c.update(schema_version=2), "schema version 2; this code reads version 1"),
        (lambda c: c.update(surprise=1), "surprise: Extra inputs"),
        (lambda c: c.pop("labels"), "labels: Field required"),
        (lambda c: c["files"].pop(HEAD), "lists the files"),
        (lambda c: c["operating_points"][2].update(threshold=-1e9), "thresholds are not those"),
        (lambda c: c.update(fpr=0.2), "thresholds are not those"),
        (lambda c: c["preprocessing"].update(image_size=64), "image_size 64 is not the encoder's 32"),
        (lambda c: c["labels"].update(make=["x"]), "label tables differ"),
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
    import hashlib

    torch.save({"x": torch.zeros(2)}, bundle / WEIGHTS)
    _edit(bundle, lambda c: c["files"].update({WEIGHTS: hashlib.sha256((bundle / WEIGHTS).read_bytes()).hexdigest()}))
    with pytest.raises(ValueError, match="damaged"):
        load_detector(bundle)
