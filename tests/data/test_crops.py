"""One photo to rows: what is given wins, what is missing is read, and everything is accounted for."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from blades_dist.data import crops
from blades_dist.data.crops import process_photo
from blades_dist.data.decode import open_image
from blades_dist.data.duplicates import perceptual_hash
from blades_dist.data.faces import PROPORTIONS
from blades_dist.data.locate_models import LocatorError
from blades_dist.data.records import given_column, label_column, no_rows, part_schema, shard_schema
from blades_dist.data.sources.base import Annotations
from blades_dist.tasks import ORDINAL_TAGS, TAGS
from tests.data.conftest import encoded, exif_of, jpeg_of, pixels_of
from tests.data.photos import POINTS, configured, face, photo_of

GIVEN = Annotations(faces=[face(10, 8, 70, 70)])


def rejection(data: bytes, given: Annotations = GIVEN, **options: object) -> tuple[int | None, str, str]:
    outcome = process_photo(photo_of(data), data, given, configured(**options))
    assert not len(outcome.rows) and len(outcome.rejected) == 1
    return outcome.rejected[0]


def test_the_columns_of_a_part() -> None:
    names, shard = set(part_schema().names), set(shard_schema().names)
    assert shard - names == {label_column(tag) for tag in TAGS}
    assert names - shard == {given_column(tag) for tag in ORDINAL_TAGS}
    assert no_rows().schema.equals(part_schema()) and len(no_rows()) == 0
    assert all(part_schema().field(given_column(tag)).type == pa.int8() for tag in ORDINAL_TAGS)


def test_a_row() -> None:
    data = jpeg_of(6)
    outcome = process_photo(photo_of(data), data, GIVEN, configured())
    rgb = open_image(data, 10**6, 10**6).pixels()
    assert (outcome.faces, outcome.pixels, outcome.rejected) == (1, 96 * 96, [])
    assert outcome.fingerprint == perceptual_hash(rgb) and outcome.rows.schema.equals(part_schema())
    (row,) = outcome.rows.to_pylist()
    assert row["id"] == f"{photo_of(data).sha256}-0" and row["split"] == "train" and row["codec"] == "jpeg"
    pixels = np.array(Image.open(io.BytesIO(row["image"])))
    assert (pixels == rgb[:91, :91]).all() and (row["width"], row["height"]) == (91, 91)
    assert row["landmarks"] == POINTS.ravel().tolist() and row["box"] == [10, 8, 70, 70]
    assert row["exif_iso"] == 100 and row["exif_make"] == "Canon"
    facts = {name: row[name] for name in ("source_width", "source_height", "chroma", "bit_depth", "pixel_mode")}
    assert facts == {
        "source_width": 96, "source_height": 96, "chroma": "4:2:0", "bit_depth": 8, "pixel_mode": "RGB"
    }  # fmt: skip
    assert len(row["jpeg_tables"]) == 16 and row["icc_profile"] is False
    assert all(row[given_column(tag)] is None for tag in ORDINAL_TAGS)


def test_given_values_win_tag_by_tag_and_levels_travel() -> None:
    data = jpeg_of(6)
    said = dict.fromkeys(TAGS) | {"iso": 3200.0, "flash": "on"}
    given = dataclasses.replace(GIVEN, exif=said, levels={"iso": 2, "aperture": 0, "exposure_time": -1})
    (row,) = process_photo(photo_of(data), data, given, configured()).rows.to_pylist()
    assert (row["exif_iso"], row["exif_flash"], row["exif_make"]) == (3200.0, "on", "Canon")
    assert [row[given_column(tag)] for tag in ORDINAL_TAGS] == [2, 0, None, None]


def test_usable_tags_are_counted_wherever_they_come_from() -> None:
    data = jpeg_of(6, exif=False)
    assert rejection(data)[1] == "no_usable_tag"
    for given in (
        dataclasses.replace(GIVEN, levels={"focal_length": 1}),
        dataclasses.replace(GIVEN, exif=dict.fromkeys(TAGS) | {"make": "Sony"}),
    ):
        assert len(process_photo(photo_of(data), data, given, configured()).rows) == 1
    assert rejection(data, dataclasses.replace(GIVEN, levels={"iso": 1}), min_tags=2)[1] == "no_usable_tag"
    flash = dataclasses.replace(GIVEN, exif=dict.fromkeys(TAGS) | {"flash": "on"}, levels={"iso": -1})
    assert rejection(data, flash)[1] == "no_usable_tag"
    assert len(process_photo(photo_of(data), data, GIVEN, configured(kind="generated", min_tags=0)).rows) == 1


def test_faces_given_in_another_frame() -> None:
    data = encoded(pixels_of(2, 200)[:, :160].copy(), exif=exif_of(2))
    given = Annotations(faces=[face(5, 10, 40, 40)], frame=(80, 50))
    outcome = process_photo(photo_of(data), data, given, configured())
    assert outcome.found[0].box == (10, 40, 80, 160)
    row = outcome.rows.to_pylist()[0]
    corner = np.array(row["landmarks"]).reshape(5, 2) - POINTS * [2, 4]
    assert np.allclose(corner, corner[0]) and row["width"] == row["height"] == 160


def test_a_whole_picture_is_the_face_whatever_is_said_of_it() -> None:
    data = encoded(pixels_of(2, 200)[:, :160].copy(), exif=exif_of(2))
    outcome = process_photo(photo_of(data), data, GIVEN, configured(faces="whole", crop_scale=1.25))
    (row,) = outcome.rows.to_pylist()
    rgb = open_image(data, 10**6, 10**6).pixels()
    assert (np.array(Image.open(io.BytesIO(row["image"]))) == rgb[20:180]).all() and row["box"] == [0, 0, 160, 200]
    # A frontal face of 160 / 1.25 = 128 pixels, 16 from every edge of the crop.
    assert np.allclose(np.array(row["landmarks"]).reshape(5, 2), 16 + 128 * PROPORTIONS, atol=1e-3)
    assert rejection(data, faces="whole", min_face_px=161)[:2] == (0, "face_too_small")


def test_photographs_without_tags_only_where_nothing_is_learned_from_them() -> None:
    data, test_only = jpeg_of(6, exif=False), {"calibration": 0.5, "test": 0.5}
    assert len(process_photo(photo_of(data), data, GIVEN, configured(min_tags=0, splits=test_only)).rows) == 1
    with pytest.raises(ValueError, match="min_tags: photographs to train on need at least one EXIF tag"):
        configured(min_tags=0)


def test_given_faces_are_checked_and_counted() -> None:
    data = jpeg_of(6)
    outside = Annotations(faces=[face(10, 8, 70, 70), face(90, 8, 70, 70)])
    assert rejection(data, outside)[:2] == (None, "bad_sidecar")
    assert rejection(data, Annotations(faces=[]))[:2] == (None, "no_face")
    mixed = Annotations(faces=[face(10, 8, 20, 70), face(10, 8, 70, 70)])
    outcome = process_photo(photo_of(data), data, mixed, configured())
    assert (outcome.faces, len(outcome.rows), outcome.rejected[0][:2]) == (2, 1, (0, "face_too_small"))
    assert outcome.rows["id"].to_pylist() == [f"{photo_of(data).sha256}-1"]


def test_located_faces_when_none_are_given() -> None:
    data = encoded(np.full((200, 200, 3), 90, np.uint8), exif=exif_of(1))
    outcome = process_photo(photo_of(data), data, Annotations(), configured())
    assert outcome.rejected[0][:2] == (None, "no_face") and outcome.fingerprint is not None and outcome.pixels == 40_000


def test_what_cannot_be_decoded_has_no_fingerprint() -> None:
    data = jpeg_of(6)[:1500]
    outcome = process_photo(photo_of(data), data, GIVEN, configured())
    assert outcome.rejected[0][1] == "truncated" and (outcome.fingerprint, outcome.pixels) == (None, 0)


def test_other_bytes_than_those_that_were_hashed() -> None:
    outcome = process_photo(photo_of(b"before"), jpeg_of(6), GIVEN, configured())
    assert outcome.rejected == [(None, "unreadable", "the file changed while it was being ingested")]


def test_memory_and_bugs_are_told_and_a_locator_stops_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(error: Exception) -> tuple[int | None, str, str]:
        def perceptual_hash(rgb: np.ndarray) -> bytes:
            raise error

        monkeypatch.setattr(crops, "perceptual_hash", perceptual_hash)
        return rejection(jpeg_of(6))

    assert fails(MemoryError())[1] == "too_large"
    assert fails(KeyError("odd"))[1:] == ("unreadable", "KeyError: 'odd'")
    monkeypatch.undo()
    data = jpeg_of(6)
    with pytest.raises(LocatorError):
        process_photo(
            photo_of(data), data, Annotations(), configured(locator="yunet", locator_model=tmp_path / "no.onnx")
        )
