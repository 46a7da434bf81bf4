"""Adding a tag is one row: nothing else is edited for it to be read, stored, trained on and named to people."""

import subprocess
import sys
from pathlib import Path

import pytest

from blades_dist.tasks import TAGS
from blades_dist.testing.made_up_tag import CONTRAST, DISTANCE, made_up_tags

ROOT = Path(__file__).parents[2]


@pytest.mark.ray
def test_a_row_is_all_that_a_tag_needs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.data.made_up_tag_walk", str(tmp_path)]
    environment = made_up_tags(tmp_path / "rows", CONTRAST, DISTANCE)
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not {"contrast", "distance"} & set(TAGS)
