"""Step 3: the photos in the order of their hashes, each once."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from blades_dist.data.pipeline.workspace import Workspace, write_table
from blades_dist.data.records import quarantine_schema

PHOTOS_PER_PART = 64
PHOTOS_PER_PLAN = 2**18  # about as many rows of the index as one task holds
_HEX = 16**4


def plan_count(entries: int) -> int:
    """How many ranges of hashes a collection of that many entries is planned in."""
    return min(_HEX, -(-entries // PHOTOS_PER_PLAN))


def plan_photos(number: int, of: int, workspace: Workspace) -> dict[str, Any]:
    """Writes the photos of the ``number``-th of ``of`` ranges of hashes in their order, in row groups of a part each,
    and the exact duplicates among them; of equal files the first in (source, path) stays. Returns ``number`` and how
    many ``photos`` and ``groups`` it has."""
    low, high = (f"{_HEX * n // of:04x}" for n in (number, number + 1))
    sha = ds.field("sha256")
    wanted = (sha >= low) & (sha < (high if number + 1 < of else "g"))
    rows = ds.dataset(workspace.folder("index"), format="parquet").to_table(filter=wanted)
    rows = rows.sort_by([(name, "ascending") for name in ("sha256", "number", "path")])
    keys = rows["sha256"].combine_chunks()
    again = pa.concat_arrays([pa.array([False]), pc.equal(keys[1:], keys[:-1])]) if len(rows) else pa.array([], "bool")
    photos = rows.filter(pc.invert(again))
    write_table(photos, workspace.table("plan", number), row_group_size=PHOTOS_PER_PART)
    write_table(_duplicates(rows.filter(again), photos), workspace.table("duplicates", number))
    return {"number": number, "photos": len(photos), "groups": -(-len(photos) // PHOTOS_PER_PART)}


def _duplicates(again: pa.Table, photos: pa.Table) -> pa.Table:
    first = photos["path"].take(pc.index_in(again["sha256"], photos["sha256"]))
    count = len(again)
    return pa.table(
        [
            again["path"],
            pa.nulls(count, pa.int32()),
            pa.array(["duplicate"] * count, pa.string()),
            pc.binary_join_element_wise("same bytes as", first, " "),
        ],
        schema=quarantine_schema(),
    )
