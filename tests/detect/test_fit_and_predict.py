"""The two jobs on simulated photographs, as a person runs them."""

import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import piexif
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from blades_dist.config import ExtractConfig, FitConfig
from blades_dist.data.decode import Rejected
from blades_dist.data.read import read_split
from blades_dist.detect import extract as extraction
from blades_dist.detect.detector import load_detector
from blades_dist.detect.extract import Request, extract
from blades_dist.detect.fit import LEAVE_ONE_OUT, fit_detector
from blades_dist.detect.inspect import inspect_files, lines
from blades_dist.detect.preprocess import Unusable, preprocess
from blades_dist.detect.schema import ImageReport
from blades_dist.models.export import save_encoder
from blades_dist.tasks import TAGS
from blades_dist.testing.toy_detector import SIZE, tiny_encoder, write_photographs, write_shards
from tests.jobs import JOBS, run_job

LIMITS = (10**7, 10**7)


pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def world(tmp_path_factory, ray_cluster):
    root = tmp_path_factory.mktemp("world")
    write_photographs(root / "photos" / "camera", range(160))
    write_shards(root / "photos", root / "shards")
    # What stands for generators here is only to exercise the path: other photographs in two folders.
    write_photographs(root / "fakes" / "alpha", range(200, 230))
    write_photographs(root / "fakes" / "beta", range(230, 260))
    write_shards(root / "fakes", root / "generated", "generated")
    save_encoder(tiny_encoder(), root / "encoder")
    config = _config(root)
    fit_detector(config, lambda _: None)
    return root


def _config(root, **values):
    oc = {"n_components": [1, 2], "n_pca_components": 4, "n_init": 1}
    defaults = {"encoder": str(root / "encoder"), "shards": root / "shards", "output": root / "detector", "oc": oc}
    return FitConfig.model_validate(defaults | values)


def _requests(root, *wanted):
    return [Request(root / "encoder", root / "shards", *one) for one in wanted]


def _features(root, *wanted):
    """One feature set each of (split, view, limit), in one job."""
    return extract(_requests(root, *wanted), ExtractConfig(), lambda _: None)


def _process(job, *arguments):
    command = [sys.executable, str(JOBS / job), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_extract(world):
    found, some, changed = _features(world, ("calibration",), ("calibration", "", 10), ("calibration", "blur2"))
    assert found.features.shape == (len(found), 16) and found.labels.shape == (len(found), len(TAGS))
    assert found.features.dtype == np.float32 and found.labels.dtype == np.int64 and set(found.sources) == {"camera"}
    np.testing.assert_allclose(np.linalg.norm(found.features, axis=1), 1, atol=1e-5)
    # Against the plain way: rows in stored order, read and resized, through the encoder.
    rows = [batch for batch in read_split(world / "shards", "calibration", SIZE)]
    assert found.ids == [name for batch in rows for name in batch["ids"]]
    images = torch.from_numpy(np.concatenate([batch["images"] for batch in rows]))
    np.testing.assert_allclose(found.features, tiny_encoder().features(images).numpy(), atol=1e-5)
    assert np.array_equal(found.labels, np.concatenate([batch["labels"] for batch in rows]))
    assert some.ids == found.ids[:10] and np.array_equal(some.features, found.features[:10])
    assert changed.ids == found.ids and np.abs(changed.features - found.features).max() > 1e-4
    kept = found.where(np.array([name == found.ids[3] for name in found.ids]))
    assert kept.ids == [found.ids[3]] and kept.features.shape == (1, 16)


@pytest.mark.parametrize("resize", ["area", "bilinear"])
def test_what_cpus_decode_for_a_gpu_gives_the_same_features(world, tmp_path, resize):
    """The two stages of an extraction on GPUs, here with the encoder on a CPU, against the one of CPUs."""
    encoder = tiny_encoder()
    encoder.info = encoder.info.model_copy(update={"resize": resize})
    save_encoder(encoder, tmp_path / "encoder")
    request = Request(tmp_path / "encoder", world / "shards", "calibration", "jpeg75")
    units = extraction._plan(request, "0" * 64, ExtractConfig(cache=tmp_path))
    table, actor = pa.table({"json": [json.dumps(asdict(unit)) for unit in units]}), extraction._Extractor(64, False)
    found = []
    for given in (table, extraction._decode(table)):
        done = actor(given).to_pylist()
        assert done == [{"rows": unit.rows, "error": ""} for unit in units]
        found.append([pq.read_table(unit.target)["features"].to_pylist() for unit in units])
    assert found[0] == found[1]
    broken = pa.table({"json": [json.dumps(asdict(units[0]) | {"shard": "nowhere.parquet"})]})
    for given in (broken, extraction._decode(broken)):
        (row,) = actor(given).to_pylist()
        assert row["rows"] == 0 and row["error"].startswith("nowhere.parquet: ")


def test_features_are_computed_once(world):
    requests = _requests(world, ("val",), ("val", "jpeg75"))  # the fit has computed them
    again = []
    extract(requests, ExtractConfig(), again.append)
    kept = sorted((world / "shards" / ".features").rglob("jpeg75/*.parquet"))
    before = [file.stat().st_mtime_ns for file in kept]
    assert kept and not again
    kept[0].unlink()  # what a kill had not reached
    extract(requests, ExtractConfig(), again.append)
    assert len(again) == 1 and [file.stat().st_mtime_ns for file in kept][1:] == before[1:]


def test_errors_of_extraction(world, tmp_path):
    config = ExtractConfig(cache=tmp_path)
    with pytest.raises(ValueError, match="sharpen3"):
        extract([Request(world / "encoder", world / "shards", "val", "sharpen3")], config)
    with pytest.raises(ValueError, match="no rows in split 'test'"):
        extract([Request(world / "encoder", world / "shards", "test")], config)
    damaged = shutil.copytree(world / "shards", tmp_path / "damaged")
    for file in damaged.glob("val*.parquet"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        file.write_bytes(data)
    with pytest.raises(ValueError, match=r"val.*\.parquet"):
        extract([Request(world / "encoder", damaged, "val")], config, lambda _: None)


def test_bundle_tells_its_origin(world):
    detector = load_detector(world / "detector")
    info = detector.info
    assert info.kind == "oc" and info.training.real > 50 and info.training.sources == {"camera": info.training.real}
    assert info.preprocessing.crop_scale == 1.3 and info.preprocessing.image_size == SIZE
    (held_out,) = _features(world, ("val",))
    rate = info.measured(0.05)
    assert rate.n == len(held_out)
    assert rate.count == int(detector.is_generated(detector.score(held_out.features)).sum())
    figures = info.training.figures
    assert {"bic", "bic_1", "held_out_log_likelihood_2", "mean_score_calibration", "mean_score_val"} <= set(figures)
    assert info.preprocessing.re_encodings == ("jpeg95", "jpeg75", "resize0.5") and info.unsure_fpr == 0.10
    views = ("", *info.preprocessing.re_encodings)
    found = _features(world, *(("val", view) for view in views))
    scores = {view: detector.score(own.features) for view, own in zip(views, found, strict=True)}
    verdicts = detector.judge(scores.pop(""), scores)
    assert info.unsure_rate.count == int(verdicts.unsure.sum()) and info.flagged_rate.count == int(
        verdicts.flagged.sum()
    )
    assert info.flagged_rate.count <= rate.count


def test_prepared_crops_are_the_stored_ones(world):
    detector = load_detector(world / "detector")
    batch = next(iter(read_split(world / "shards", "val", SIZE, limit=5)))
    for path, stored in zip(batch["paths"], batch["images"], strict=True):
        file = world / "photos" / path
        sidecar = file.with_name(f"{file.stem}.faces.json").read_bytes()
        prepared = preprocess(file.read_bytes(), detector.info.preprocessing, *LIMITS, sidecar)
        assert np.array_equal(prepared.crops[0, 0], stored) and prepared.faces_from == "sidecar"
        assert prepared.crops.shape == (1, 4, 3, SIZE, SIZE)


def test_binary_by_generator(world):
    config = _config(
        world,
        kind="bc",
        generated=world / "generated",
        generators=["beta"],
        output=world / "bc",
        bc={"hidden": 8, "epochs": 3},
    )
    info = fit_detector(config, lambda _: None)["bc"]
    assert info.kind == "bc" and set(info.training.generated) == {"beta"}
    assert load_detector(world / "bc").detect(np.zeros((1, 3, SIZE, SIZE), np.uint8))[0].score != 0
    with pytest.raises(ValueError, match=r"generators: gamma not in split train .* it has: alpha, beta"):
        fit_detector(config.model_copy(update={"generators": ["gamma"]}), lambda _: None)


def test_leave_one_generator_out(world):
    config = _config(
        world,
        kind="bc",
        generated=world / "generated",
        leave_one_out=True,
        output=world / "loo",
        bc={"hidden": 8, "epochs": 2},
    )
    found = fit_detector(config, lambda _: None)
    assert {name: set(info.training.generated) for name, info in found.items()} == {
        "without-alpha": {"beta"},
        "without-beta": {"alpha"},
    }
    assert json.loads((world / "loo" / LEAVE_ONE_OUT).read_text()) == {"alpha": "without-alpha", "beta": "without-beta"}
    assert load_detector(world / "loo" / "without-alpha").info.kind == "bc"
    single = config.model_copy(update={"generators": ["beta"], "output": world / "loo1"})
    with pytest.raises(ValueError, match="beta is the only generator"):
        fit_detector(single, lambda _: None)


@pytest.mark.parametrize("kind", ["mahalanobis", "knn"])
def test_other_heads(world, kind):
    info = fit_detector(_config(world, kind=kind, output=world / kind), lambda _: None)[kind]
    assert info.kind == kind and load_detector(world / kind).info.measured(0.05).n > 0


def test_fit_job(world, tmp_path):
    common = [f"encoder={world / 'encoder'}", f"shards={world / 'shards'}", "oc.n_components=[1, 2]", "oc.n_init=1"]
    done = run_job("fit_detector.py", *common, "oc.n_pca_components=4", f"output={tmp_path / 'd'}")
    assert done.returncode == 0, done.stderr
    assert "bic" in done.stdout and str(tmp_path / "d") in done.stdout and "95% interval" in done.stdout
    # The same faces, configuration and seed give the same decisions.
    rows = np.random.default_rng(0).normal(size=(9, 16)).astype(np.float32)
    assert np.array_equal(load_detector(tmp_path / "d").score(rows), load_detector(world / "detector").score(rows))
    for wrong, message in (
        ([*common, "oc.n_pca_components=99"], "oc.n_pca_components=99"),
        ([*common, "fpr=0.0001"], "ingest at least 9999"),
        ([*common[1:], f"encoder={tmp_path}"], "encoder.json is missing"),
    ):
        failed = run_job("fit_detector.py", *wrong, f"output={tmp_path / 'x'}")
        assert failed.returncode == 2 and message in failed.stderr and "Traceback" not in failed.stderr
    assert not (tmp_path / "x").exists()


def test_user_errors_in_fit(world, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"encoder\.json is missing"):
        fit_detector(_config(world, encoder=str(tmp_path)), lambda _: None)
    with pytest.raises(FileNotFoundError, match=r"manifest\.json is missing"):
        fit_detector(_config(world, shards=tmp_path), lambda _: None)
    with pytest.raises(ValueError, match=r"shards: .* holds generated, expected photographs"):
        fit_detector(_config(world, shards=world / "generated"), lambda _: None)


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    """Three usable photographs (one without sidecar) and four files that are not."""
    folder = tmp_path_factory.mktemp("folder")
    write_photographs(folder, range(300, 302))
    write_photographs(folder, range(302, 303), sidecars=False)
    good = (folder / "0300.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(good[: len(good) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    (folder / "0301b.jpg").write_bytes(good)
    (folder / "0301b.faces.json").write_text('{"faces": 3}')
    return folder


def test_predict_job(world, folder):
    plain = run_job("predict.py", world / "detector", folder)
    assert plain.returncode == 1 and "Traceback" not in plain.stderr
    assert (
        len(re.findall(r"(?:photographic|AI-generated|unsure), p = ", plain.stdout)) == 3
        and plain.stdout.count("How to read this") == 1
    )
    assert f"{folder / 'cut.jpg'}: not judged: truncated" in plain.stdout
    machine = _process("predict.py", world / "detector", folder, "--json", "--fpr", "0.1")
    document = json.loads(machine.stdout)
    assert machine.returncode == 1 and document["fpr"] == 0.1
    reasons = {Path(item["path"]).name: item["reason"] for item in document["unusable"]}
    assert reasons == {
        "0301b.jpg": "bad_sidecar",
        "cut.jpg": "truncated",
        "empty.jpg": "empty",
        "text.jpg": "unreadable",
    }
    assert [item["faces_from"] for item in document["images"]] == ["sidecar", "sidecar", "located"]
    # In this process, in one thread, one file at a time: the same document, bit for bit.
    detector, threads = load_detector(world / "detector"), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for item in document["images"]:
            ((_, answer),) = inspect_files(detector, [Path(item.pop("path"))], *LIMITS, fpr=0.1)
            assert isinstance(answer, ImageReport) and answer.model_dump(mode="json") == item
    finally:
        torch.set_num_threads(threads)


def test_exif_is_told_beside_the_verdict_and_not_mixed_into_it(world, folder, tmp_path):
    detector = load_detector(world / "detector")
    data = (folder / "0300.jpg").read_bytes()
    bare = io.BytesIO()
    piexif.remove(data, bare)
    shutil.copy(folder / "0300.faces.json", tmp_path / "with.faces.json")
    shutil.copy(folder / "0300.faces.json", tmp_path / "without.faces.json")
    (tmp_path / "with.jpg").write_bytes(data)
    (tmp_path / "without.jpg").write_bytes(bare.getvalue())
    files = [tmp_path / "with.jpg", tmp_path / "without.jpg"]
    (_, first), (_, second) = inspect_files(detector, files, *LIMITS)
    claims, without = first.faces[0].exif_consistency, second.faces[0].exif_consistency
    assert without is None and set(claims.tags) <= set(TAGS)
    for tag, claim in claims.tags.items():
        assert claim.probability == pytest.approx(first.faces[0].read_outs[tag][claim.claimed])
        assert 0 < claim.p_value <= 1
    assert first.faces[0].model_copy(update={"exif_consistency": None}) == second.faces[0]
    told = "\n".join(lines("with.jpg", first))
    assert "the file's EXIF claims: " in told and "the pixels suggest: " in told and "most manipulated: " in told
    assert "EXIF" not in "\n".join(lines("without.jpg", second))


def test_predict_usage_errors(world, folder):
    for arguments, message in (
        ((world / "encoder", folder), "no detector folder"),
        ((world / "detector", folder / "nothing.jpg"), "does not exist"),
        ((world / "detector", folder / "0300.jpg", "--fpr", "0.00001"), "is the smallest"),
    ):
        failed = run_job("predict.py", *arguments)
        assert failed.returncode == 2 and message in failed.stderr and "Traceback" not in failed.stderr


def test_whole_image_and_small_faces(world, folder):
    detector = load_detector(world / "detector")
    how = detector.info.preprocessing
    data = (folder / "0302.jpg").read_bytes()
    whole = preprocess(data, how, *LIMITS, whole=True)
    assert whole.faces_from == "whole image" and whole.faces[0].box == (0, 0, 128, 128)
    ((_, answer),) = inspect_files(detector, [folder / "0302.jpg"], *LIMITS, whole=True)
    assert isinstance(answer, ImageReport) and answer.faces[0].landmarks is None
    with pytest.raises(Rejected, match="need") as caught:
        preprocess(data, how.model_copy(update={"min_face_px": 200}), *LIMITS)
    assert caught.value.reason == "face_too_small"
    ((_, answer),) = inspect_files(detector, [folder / "0302.jpg"], 100, 10**7)
    assert isinstance(answer, Unusable) and answer.reason == "too_large"
    ((_, answer),) = inspect_files(detector, [folder / "0302.jpg"], 10**7, 100)
    assert isinstance(answer, Unusable) and answer.reason == "too_large"
