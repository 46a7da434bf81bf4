"""The demo's own errors; that it runs end to end is shown by running it (.ci/run)."""

from pathlib import Path

import pytest

from blades_dist.demo import Demo
from blades_dist.settings import ConfigError


def test_an_override_of_no_stage_is_refused_before_anything_runs(tmp_path: Path) -> None:
    demo = Demo(tmp_path / "runs", Path("jobs/configs/demo.yaml"), overrides=("pretran.train.epochs=1",))
    with pytest.raises(ConfigError, match=r"'pretran.train.epochs=1' names no stage; .* simulate, ingest"):
        demo.run()
    assert not (tmp_path / "runs").exists()
