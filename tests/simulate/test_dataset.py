"""The camera simulator: determinism, truth of EXIF and landmarks, physics, fairness of the generated side."""

import hashlib
import io
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import piexif
import pytest
from numpy.typing import NDArray
from PIL import Image

from blades_dist.simulate import dataset, makers, pipeline
from blades_dist.simulate.camera import Settings, expose, plan_shot
from blades_dist.simulate.exif_out import exif_bytes
from blades_dist.simulate.generators import FAMILIES
from blades_dist.simulate.makers import MAKERS, Maker, quantisation_tables
from blades_dist.simulate.scene import Light, Scene, SceneParameters, render, sample_scene
from blades_dist.simulate.sensor import motion_length
from blades_dist.tags import MAKES

COUNT = 100  # images a side in the comparisons of photographs with generated faces
Pixels = NDArray[np.float32]


def pixels(jpeg: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), np.float32)


@cache
def photographs() -> tuple[dataset.SimulatedImage, ...]:
    return tuple(dataset.photograph(index, 11) for index in range(COUNT))


@cache
def fakes(family: str) -> tuple[dataset.SimulatedImage, ...]:
    return tuple(dataset.generated(family, index, 11) for index in range(COUNT))


def auc(negative: list[float], positive: list[float]) -> float:
    """Probability that a random positive exceeds a random negative."""
    difference = np.array(positive)[:, None] - np.array(negative)[None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def luma(image: Pixels) -> Pixels:
    return np.asarray(image @ np.array([0.299, 0.587, 0.114], np.float32), np.float32)


def residual(image: Pixels) -> Pixels:
    grey = luma(image)
    return np.asarray(grey - cv2.GaussianBlur(grey, (0, 0), 1.0), np.float32)


# --- determinism and files


def test_images_depend_on_seed_and_index_only() -> None:
    first = dataset.photograph(5, 3)
    dataset.photograph(6, 3)
    assert dataset.photograph(5, 3) == first
    assert dataset.photograph(5, 4).jpeg != first.jpeg
    assert dataset.generated("spectral", 5, 3) == dataset.generated("spectral", 5, 3)
    # The two sides never share a scene.
    assert dataset.generated("spectral", 5, 3).landmarks != first.landmarks


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_files_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    for processes in (1, 2):
        dataset.write_photographs(tmp_path / str(processes), 70, seed=2, size=64, processes=processes)
    assert digests(tmp_path / "1") == digests(tmp_path / "2")


def test_writing_is_idempotent_and_fills_gaps(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    families = ["diffusion", "gan_nearest"]
    for _ in range(2):
        dataset.write_generated(
            tmp_path, families, 3, seed=2, size=64, progress=lambda done, count: seen.append((done, count))
        )
    assert seen == [(3, 6), (6, 6)]  # the second call made nothing
    before = digests(tmp_path)
    assert {Path(name).parts[0] for name in before} == set(families)
    (tmp_path / "diffusion" / "000001.jpg").unlink()
    (tmp_path / "diffusion" / "simulation.json").unlink()
    dataset.write_generated(tmp_path, families, 3, seed=2, size=64)
    assert digests(tmp_path) == before
    with pytest.raises(ValueError, match="holds pictures made with"):
        dataset.write_generated(tmp_path, families, 3, seed=3, size=64)


def test_sidecars_and_command_line(tmp_path: Path) -> None:
    assert dataset.main([str(tmp_path), "--photos", "2", "--generated", "1", "--size", "64"]) == 0
    face = json.loads((tmp_path / "photographs" / "000001.faces.json").read_text())["faces"][0]
    assert len(face["box"]) == 4 and np.array(face["landmarks"]).shape == (5, 2)
    assert {path.name for path in (tmp_path / "generated").iterdir()} == set(FAMILIES)
    assert dataset.main([str(tmp_path), "--photos", "-1"]) == 2


def test_the_simulator_needs_neither_torch_nor_ray() -> None:
    loaded = "print([m for m in ('ray', 'torch', 'deepspeed') if m in sys.modules])"
    code = f"import sys, blades_dist.simulate.dataset; {loaded}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dataset.generated("midjourney", 0, 1), "'midjourney'.*gan_transposed"),
        (lambda: dataset.photograph(0, 1, size=32), "size is 32; allowed is 64 to 2048"),
        (lambda: dataset.photograph(-1, 1), "index is -1; allowed is 0 or more"),
        (lambda: dataset.write_photographs(Path("unused"), -3, seed=1), "count is -3"),
        (lambda: dataset.write_photographs(Path("unused"), 3, seed=1, processes=0), "processes is 0"),
    ],
)
def test_bad_input_is_refused_by_name(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


# --- truth


def test_landmarks_are_in_order_and_the_box_yields_the_whole_image() -> None:
    for image in photographs():
        x, y, w, h = image.box
        left_eye, right_eye, nose, left_mouth, right_mouth = image.landmarks
        assert all(x <= px <= x + w and y <= py <= y + h for px, py in image.landmarks)
        assert left_eye[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
        assert max(left_eye[1], right_eye[1]) < nose[1] < max(left_mouth[1], right_mouth[1])
        assert 0.77 <= max(w, h) / 128 <= 0.95
        reach = 0.65 * max(w, h)
        assert x + w / 2 - reach <= 0 and x + w / 2 + reach >= 128
        assert y + h / 2 - reach <= 0 and y + h / 2 + reach >= 128


def test_pupils_are_darker_than_the_skin_around_them() -> None:
    """Landmarks point at the picture's features, not just at plausible places."""
    darker = 0
    for image in photographs():
        grey = luma(pixels(image.jpeg))
        for x, y in image.landmarks[:2]:
            row, column = round(y), round(x)
            eye = grey[row - 3 : row + 4, column - 5 : column + 6].min()
            darker += eye < grey[row + 9 : row + 14, column - 5 : column + 6].mean()
    assert darker > 0.85 * 2 * COUNT


def test_exif_states_the_settings() -> None:
    missing, makes = 0, Counter[str]()
    for index in range(COUNT):
        shot = pipeline.shoot(np.random.default_rng([11, 1, index]), 128)
        s, exif = shot.settings.exif, piexif.load(photographs()[index].jpeg)
        if s.missing:
            missing += 1
            assert s.missing <= set(s.tags)
            continue
        found = exif["Exif"]
        makes[exif["0th"][piexif.ImageIFD.Make].decode()] += 1
        assert exif["0th"][piexif.ImageIFD.Model].decode() == s.model
        assert exif["0th"][piexif.ImageIFD.Orientation] == 1
        assert found[piexif.ExifIFD.ISOSpeedRatings] == shot.settings.iso
        assert np.divide(*found[piexif.ExifIFD.FNumber]) == pytest.approx(shot.settings.f_number)
        assert np.divide(*found[piexif.ExifIFD.ExposureTime]) == pytest.approx(shot.settings.time)
        assert np.divide(*found[piexif.ExifIFD.FocalLength]) == pytest.approx(shot.settings.plan.focal, abs=0.01)
        equivalent = shot.settings.plan.focal * shot.settings.plan.body.crop
        assert found[piexif.ExifIFD.FocalLengthIn35mmFilm] == round(equivalent)
        assert found[piexif.ExifIFD.MeteringMode] == shot.settings.plan.metering
        assert found[piexif.ExifIFD.ExposureMode] == shot.settings.plan.exposure_mode
        assert found[piexif.ExifIFD.ExposureProgram] == shot.settings.plan.program
        assert found[piexif.ExifIFD.WhiteBalance] == shot.settings.plan.white_balance
        assert bool(found[piexif.ExifIFD.Flash] & 1) == (shot.settings.plan.flash > 0)
    assert 0 < missing < 0.15 * COUNT
    assert {"NIKON CORPORATION", "Apple", "FUJIFILM", "Canon", "SAMSUNG", "SONY", "Panasonic", "Nokia"} <= set(makes)


def test_missing_tags_are_left_out() -> None:
    shot = pipeline.shoot(np.random.default_rng(1), 64)
    found = piexif.load(exif_bytes(replace(shot.settings.exif, missing=frozenset({"iso", "make"}))))
    assert piexif.ExifIFD.ISOSpeedRatings not in found["Exif"] and piexif.ExifIFD.FNumber in found["Exif"]
    assert piexif.ImageIFD.Make not in found["0th"]


# --- physics


def one_shot(seed: int, maker: Maker | None = None) -> tuple[SceneParameters, Light, Scene, Settings]:
    rng = np.random.default_rng(seed)
    parameters = sample_scene(rng)
    maker = maker or MAKERS["Nikon"][0]
    light = replace(parameters.light, lux=400.0)
    plan = plan_shot(maker, maker.bodies[0], light, rng)
    plan = replace(plan, flash=0.0, program=2, exposure_mode=0, bracket=0.0)
    scene = render(parameters, 128, plan.distance)
    return parameters, light, scene, expose(plan, scene, light, rng)


@pytest.mark.parametrize("group", MAKES)
def test_noise_grows_with_iso_at_an_equal_scene(group: str) -> None:
    _, light, scene, settings = one_shot(4, MAKERS[group][0])
    scene = replace(scene, subject_speed=(0.0, 0.0))
    noise = []
    for iso in (100, 800, 3200):
        # The difference of two shots that share the lens's random numbers is noise alone.
        taken = replace(settings, iso=iso, time=settings.time * settings.iso / iso)
        pair = []
        for seed in (1, 2):
            image, _ = pipeline.through_lens(scene, taken, np.random.default_rng(0))
            raw = pipeline.expose_raw(image, taken, light, np.random.default_rng(seed))
            pair.append(pipeline.develop(raw, taken))
        noise.append(float(np.std(pair[0] - pair[1])))
    assert noise[0] * 1.3 < noise[1] and noise[1] * 1.3 < noise[2]


def test_a_long_exposure_blurs_motion() -> None:
    _, _, scene, settings = one_shot(5)
    scene = replace(scene, subject_speed=(80.0, 10.0))
    energy = []
    for seconds in (1 / 2000, 1 / 8):
        taken = replace(settings, time=seconds, iso=round(100 / seconds / 2000 * 8) or 1)
        image, _ = pipeline.through_lens(scene, taken, np.random.default_rng(0))
        energy.append(float(np.square(np.diff(image, axis=1)).mean()))
        assert motion_length(scene, taken, (0.0, 0.0))[0] == pytest.approx(seconds * 80 * scene.pixels_per_mm)
    assert energy[1] < 0.6 * energy[0]


def test_an_open_aperture_blurs_the_background() -> None:
    _, _, scene, settings = one_shot(6)
    scene = replace(scene, background_distance=4000.0)
    settings = replace(settings, plan=replace(settings.plan, focal=85.0))
    corner = []
    for f_number in (1.8, 16.0):
        image, _ = pipeline.through_lens(scene, replace(settings, f_number=f_number), np.random.default_rng(0))
        corner.append(float(np.square(np.diff(image[:30, :14], axis=0)).mean()))
    assert corner[0] < corner[1]


def test_every_make_is_there_and_no_two_have_the_same_tables() -> None:
    assert tuple(MAKERS) == MAKES
    every = [maker for group in MAKERS.values() for maker in group]
    tables = [tuple(map(tuple, quantisation_tables(maker, 0.15))) for maker in every]
    assert len(set(tables)) == len(tables)
    for table in tables:
        assert all(len(part) == 64 and min(part) >= 1 and max(part) <= 255 for part in table)


def test_makers_leave_different_pixels_of_one_raw_file() -> None:
    _, light, scene, settings = one_shot(7)
    seen: list[Pixels] = []
    for group in MAKERS.values():
        plan = replace(settings.plan, maker=group[0])
        image, _ = pipeline.photograph_scene(scene, replace(settings, plan=plan), light, np.random.default_rng(0))
        assert all(np.abs(image - other).mean() > 0.5 for other in seen)
        seen.append(image)


def test_settings_are_joint() -> None:
    """Dark scenes have higher ISO and longer times than bright ones; phones have short lenses."""
    shots = []
    for index in range(150):
        rng = np.random.default_rng([8, index])
        parameters = sample_scene(rng)
        maker, body = makers.sample_maker(rng)
        plan = plan_shot(maker, body, parameters.light, rng)
        settings = expose(plan, render(parameters, 64, plan.distance, plan.flash), parameters.light, rng)
        shots.append((parameters.light.lux, settings.iso, settings.time, body.phone, plan.focal))
    lux, iso, time, phone, focal = np.array(shots).T
    assert np.corrcoef(np.log(lux), np.log(iso))[0, 1] < -0.5
    assert np.corrcoef(np.log(lux), np.log(time))[0, 1] < -0.5
    assert focal[phone == 1].max() < 10


# --- fairness of the generated side


@pytest.mark.parametrize("family", FAMILIES)
def test_containers_tell_nothing(family: str) -> None:
    """Same dimensions and codec, no EXIF, and tables and subsampling from one distribution (three-sigma bound)."""
    sides = []
    for images in (photographs(), fakes(family)):
        files = [Image.open(io.BytesIO(image.jpeg)) for image in images]
        assert {(f.size, f.mode, f.format) for f in files} == {((128, 128), "RGB", "JPEG")}
        steps = [float(np.mean(f.quantization[0])) for f in files]  # type: ignore[attr-defined]
        layers = [float(f.layer[0][1] * f.layer[0][2]) for f in files]  # type: ignore[attr-defined]
        sides.append((steps, layers))
    for photographed, made in zip(*sides, strict=True):
        assert abs(auc(photographed, made) - 0.5) < 0.13
    assert all(b"Exif" not in image.jpeg[:64] for image in fakes(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_global_statistics_tell_nothing(family: str) -> None:
    """AUC of brightness, contrast, saturation, colour and borders within 0.13 of chance (about three sigma)."""

    def statistics(image: Pixels) -> dict[str, float]:
        grey = luma(image)
        edge = np.abs(grey[0] - grey[1]).mean() + np.abs(grey[-1] - grey[-2]).mean()
        inner = np.abs(grey[4] - grey[5]).mean() + np.abs(grey[-5] - grey[-6]).mean()
        return {
            "brightness": float(grey.mean()),
            "contrast": float(grey.std()),
            "saturation": float((image.max(2) - image.min(2)).mean()),
            "red": float(image[..., 0].mean()),
            "blue": float(image[..., 2].mean()),
            "borders": float((edge + 1) / (inner + 1)),
        }

    real = [statistics(pixels(image.jpeg)) for image in photographs()]
    made = [statistics(pixels(image.jpeg)) for image in fakes(family)]
    for name in real[0]:
        value = auc([r[name] for r in real], [m[name] for m in made])
        assert abs(value - 0.5) < 0.13, f"{name}: AUC {value:.3f}"


def _period_two(image: Pixels) -> float:
    spectrum = np.abs(np.fft.fft2(residual(image) * np.outer(np.hanning(128), np.hanning(128))))
    return float((spectrum[64, 0] + spectrum[0, 64] + spectrum[64, 64]) / np.median(spectrum[40:90, 40:90]))


def _high_band(image: Pixels) -> float:
    return float(np.abs(np.fft.fft2(residual(image)))[48:81, 48:81].mean())


def _smallest_residual(image: Pixels) -> float:
    """Residual where the picture is flattest: the sensor noise that a photograph cannot be without."""
    local = cv2.blur(np.square(residual(image)), (9, 9))
    return float(np.percentile(local, 20))


@pytest.mark.parametrize(
    ("family", "trace", "grows"),
    [
        ("gan_transposed", _period_two, True),
        ("gan_nearest", _high_band, False),
        ("autoencoder", _high_band, False),
        ("diffusion", _smallest_residual, False),
        ("spectral", _high_band, False),
    ],
)
def test_every_family_leaves_its_trace(family: str, trace: object, grows: bool) -> None:
    """Measured on the same scene before and after the generator, and not uniformly strong."""
    changes = []
    for index in range(40):
        rng = np.random.default_rng([5, index])
        image = pipeline.shoot(rng, 128).pixels
        before, after = trace(image), trace(FAMILIES[family](image, rng))  # type: ignore[operator]
        changes.append(np.log((after + 1e-3) / (before + 1e-3)) * (1 if grows else -1))
    assert np.mean(np.array(changes) > 0) > 0.85
    assert np.median(changes) > 0.2
    assert np.std(changes) > 0.05


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [64, 97, 130])
def test_generators_take_any_size(family: str, size: int) -> None:
    image = pipeline.shoot(np.random.default_rng(3), size).pixels
    made = FAMILIES[family](image, np.random.default_rng(0))
    assert made.shape == image.shape and made.dtype == np.float32 and np.isfinite(made).all()
