"""An ingest that has lost something says so instead of publishing."""

from pathlib import Path
from typing import Any

import pytest

from blades_dist.config import IngestConfig
from blades_dist.data.pipeline.summary import IngestError, manifest_of
from blades_dist.data.records import Shard

CONFIG = IngestConfig(source=(str(Path("photos")),), output=Path("out"))
SHARDS = [Shard(name="train-00000-0.parquet", split="train", rows=5, row_groups=[5], sha256="0")]


def counts(**changed: Any) -> dict[str, dict[str, int]]:
    whole = {
        "files": {"written": 4, "unusable": 2, "duplicates": 1, "refused": 1, "near duplicates": 1},
        "faces": {"seen": 7, "refused": 2},
        "rows": {"train": 5},
        "sources": {"photos": 5},
        "reasons": {"duplicate": 1, "empty": 1, "face_too_small": 2, "near_duplicate": 1, "no_face": 2},
    }
    return whole | changed


def test_counts_that_add_up_make_a_manifest() -> None:
    manifest = manifest_of(CONFIG, 9, counts(), {"iso": (100.0, 400.0)}, SHARDS)
    assert (manifest.files_seen, manifest.faces_seen, manifest.rows["train"], manifest.rows["test"]) == (9, 7, 5, 0)
    assert manifest.ordinal_edges == {"iso": (100.0, 400.0)} and manifest.quarantine["near_duplicate"] == 1


@pytest.mark.parametrize(
    ("entries", "changed", "message"),
    [
        (10, {}, "10 files were listed"),
        (9, {"rows": {"train": 6}}, "rows of the photos written"),
        (9, {"rows": {"train": 5, "val": 1}}, "rows of the photos written"),
        (9, {"faces": {"seen": 8, "refused": 2}}, "8 faces seen"),
    ],
)
def test_counts_that_do_not_are_refused(entries: int, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(IngestError, match=message):
        manifest_of(CONFIG, entries, counts(**changed), {}, SHARDS)
