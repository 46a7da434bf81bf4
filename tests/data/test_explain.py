"""What ``--inspect`` says of a file: for people and for machines."""

import json
from pathlib import Path

import piexif

from blades_dist.data.explain import inspect_file
from blades_dist.data.sources.base import Annotations
from blades_dist.tasks import TAGS
from blades_dist.testing.exif_cases import VALID
from tests.data.conftest import encoded, jpeg_of, pixels_of, write_sidecar
from tests.data.photos import configured, face


def test_a_usable_photo(tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(encoded(pixels_of(3, 120)[:, :100].copy(), quality=90, exif=b"Exif\0\0" + VALID))
    write_sidecar(file)
    found = inspect_file(file, configured())
    assert (found.taken, found.reason, found.codec, found.width, found.height) == (True, "", "jpeg", 120, 100)
    assert (found.orientation, found.focal_length_35mm, found.faces_from) == (6, 75, "photo.faces.json")
    assert tuple(found.tags) == TAGS and [f.box for f in found.faces] == [(10, 8, 70, 70)]
    aperture = found.tags["aperture"]
    assert (aperture.value, aperture.unit, aperture.field, aperture.stored) == (2.8, "f-number", "FNumber", 2.8)
    assert (found.tags["iso"].field, found.tags["make"].stored) == ("ISOSpeed", "RICOH")
    text = found.text()
    for told in ("120 x 100", "2.8 f-number (from FNumber = 2.8)", "35 mm equivalent 75", "10, 8, 70, 70", ": yes"):
        assert told in text
    assert json.loads(json.dumps(found.as_json()))["tags"]["iso"]["value"] == 102400.0


def test_an_untagged_photo_still_shows_its_faces(tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    exif = piexif.dump({"Exif": {piexif.ExifIFD.FNumber: (0, 1)}})
    file.write_bytes(encoded(pixels_of(3, 96), exif=exif))
    write_sidecar(file, side=30)
    found = inspect_file(file, configured())
    assert (found.taken, found.reason) == (False, "no_usable_tag")
    assert found.faces[0].problem.startswith("face_too_small")
    assert "FNumber holds 0.0, implausible" in found.text() and "no: no_usable_tag" in found.text()


def test_what_the_source_says_is_told(tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(jpeg_of(2, exif=False))
    given = Annotations(faces=[face(1, 2, 80, 80)], exif=dict.fromkeys(TAGS) | {"iso": 50.0})
    found = inspect_file(file, configured(), given)
    assert found.taken and found.faces_from == "the source"
    assert (found.tags["iso"].value, found.tags["iso"].field) == (50.0, "what the source says")


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    text, broken = tmp_path / "text.jpg", tmp_path / "broken.jpg"
    text.write_text("this is no image")
    found = inspect_file(text, configured())
    assert (found.taken, found.reason, found.width, found.faces) == (False, "unreadable", None, [])
    assert "cannot be opened" in found.text()
    broken.write_bytes(jpeg_of(1))
    broken.with_name("broken.faces.json").write_text("{")
    assert inspect_file(broken, configured()).reason == "bad_sidecar"
