"""Parts: the rows of a few photos before they are packed into shards. No Ray here."""

import pyarrow as pa

from blades_dist.data.records import label_column, shard_schema
from blades_dist.tasks import ORDINAL_TAGS, TAGS

_LABELS = tuple(label_column(tag) for tag in TAGS)


def given_column(tag: str) -> str:
    """Part column of an ordinal tag's level where the source gives one; shards have none."""
    return f"given_{tag}"


def part_schema() -> pa.Schema:
    """Columns of a part: a shard's, without the labels, which need the edges of the whole collection, and with the
    levels that a source gave in their place (int8, null where it gave none)."""
    kept = [item for item in shard_schema() if item.name not in _LABELS]
    return pa.schema(kept + [pa.field(given_column(tag), pa.int8()) for tag in ORDINAL_TAGS])


def no_rows() -> pa.Table:
    """A part without a row."""
    return pa.Table.from_batches([], part_schema())  # Schema.empty_table would import pandas
