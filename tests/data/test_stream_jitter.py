"""Crop jitter: a function of (seed, epoch, row) alone, that landmarks follow."""

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blades_dist.data.jitter import STILL, Jitter, Window
from blades_dist.data.read import empty_batch, fill, read_rows
from blades_dist.data.records import shard_schema
from blades_dist.tasks import TAGS

MARKS = np.array([[30, 34], [60, 34], [45, 50], [35, 62], [55, 62]], np.float32)


def table_of(rows: int, side: int = 91) -> pa.Table:
    """Shard rows whose pixels say where they lie: blue is x, green is y."""
    y, x = np.mgrid[:side, :side].astype(np.uint8)
    png = cv2.imencode(".png", np.dstack([x, y, x * 0]))[1].tobytes()
    columns = {"id": [f"row{i}" for i in range(rows)], "image": [png] * rows, "landmarks": [MARKS.ravel()] * rows}
    columns |= {f"label_{tag}": [0] * rows for tag in TAGS}
    return pa.table({name: pa.array(values, shard_schema().field(name).type) for name, values in columns.items()})


@given(st.floats(0.01, 0.3), st.text(max_size=9), st.integers(0, 99), st.integers(63, 200), st.integers(63, 200))
def test_a_window_lies_inside_its_crop_and_holds_the_landmarks(
    strength: float, row: str, epoch: int, height: int, width: int
) -> None:
    window = Jitter(strength, 3).window(row, epoch, (height, width), MARKS)
    assert min(window.x, window.y) >= 0 and window.x + window.width <= width and window.y + window.height <= height
    inside = MARKS - window.corner
    assert inside.min() >= 0 and (inside <= (window.width - 1, window.height - 1)).all()
    assert window.width >= round((1 - strength) * width) and window.height >= round((1 - strength) * height)


def test_landmarks_outside_the_crop_bind_nothing() -> None:
    window = Jitter(0.3, 1).window("x", 0, (100, 80), MARKS + 1000)
    assert 70 <= window.height <= 100 and 56 <= window.width <= 80 and window.x + window.width <= 80


def test_windows_depend_on_seed_epoch_and_row_and_nothing_else() -> None:
    def windows(seed: int, epoch: int) -> list[Window]:
        return [Jitter(0.2, seed).window(f"row{i}", epoch, (91, 91), MARKS) for i in range(8)]

    assert windows(1, 0) == windows(1, 0) and len(set(windows(1, 0))) > 4
    assert windows(1, 0) != windows(1, 1) and windows(1, 0) != windows(2, 0)
    # A run resumed under another version must go on with the same windows: these numbers must not change.
    assert Jitter(0.2, 7).window("abc-0", 2, (100, 100), MARKS) == FIXED


FIXED = Window(9, 11, 80, 80)


def test_without_strength_the_whole_crop_is_taken() -> None:
    assert STILL.window("x", 5, (70, 90), MARKS) == Window(0, 0, 90, 70)


def test_landmarks_follow_the_window() -> None:
    rows, size = 6, 64
    batch = empty_batch(rows, size)
    fill(batch, np.arange(rows), table_of(rows), size, Jitter(0.2, 3), np.arange(rows))
    for pixels, marks in zip(batch["images"], batch["landmarks"], strict=True):
        column, row = np.rint(marks).astype(int).T
        assert np.abs(pixels[2, row, column] - MARKS[:, 0]).max() <= 1.5  # what is there is what was there
        assert np.abs(pixels[1, row, column] - MARKS[:, 1]).max() <= 1.5
    assert len({marks.tobytes() for marks in batch["landmarks"]}) > 1


def test_a_row_asked_for_twice_comes_as_each_epoch_has_it(tmp_path: Path) -> None:
    pa.parquet.write_table(table_of(3), tmp_path / "a.parquet")
    files, jitter = [(tmp_path / "a.parquet", 0)], Jitter(0.3, 3)
    rows, epochs = np.array([1, 1, 0]), np.array([0, 1, 0])  # as many as the group has, and not the group
    batch = read_rows(files, np.zeros(3, np.int64), rows, 32, jitter, epochs)
    assert batch["ids"] == ["row1", "row1", "row0"]
    assert not (batch["images"][0] == batch["images"][1]).all()
    alone = read_rows(files, np.zeros(1, np.int64), rows[1:2], 32, jitter, epochs[1:2])
    assert (alone["images"][0] == batch["images"][1]).all()


@pytest.mark.parametrize("size", [32, 91, 128])
def test_no_jitter_is_what_it_always_was(size: int) -> None:
    plain, still = empty_batch(2, size), empty_batch(2, size)
    fill(plain, np.arange(2), table_of(2), size)
    fill(still, np.arange(2), table_of(2), size, Jitter(0.0, 9), np.array([4, 5]))
    assert (plain["images"] == still["images"]).all()
    assert np.allclose(plain["landmarks"], (MARKS + 0.5) * size / 91 - 0.5, atol=1e-4)
