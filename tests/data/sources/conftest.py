"""Collections that several tests read."""

import json
from pathlib import Path

import pytest

from tests.data.sources.layouts import fdf_item, picture, write_tree


@pytest.fixture
def fdf(tmp_path: Path) -> Path:
    """Three images, of which the JSON names two and one that is missing."""
    folder = tmp_path / "fdf"
    for index in (0, 1, 10):
        write_tree(folder, {f"images/{side}/{index}.png": picture(index, side) for side in (8, 32)})
    (folder / "fdf_metainfo.json").write_text(json.dumps({"0": fdf_item(), "10": fdf_item(0.1), "5": fdf_item()}))
    return folder
