"""What a shard row and a manifest hold: the format between ingest and everything that reads faces."""

import hashlib
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from blades_dist.tasks import CATEGORICAL_TAGS, ORDINAL_TAGS, TAGS

SCHEMA_VERSION: Literal[2] = 2
MANIFEST = "manifest.json"
QUARANTINE = "quarantine.parquet"

LANDMARKS = 5  # eye at image left, eye at image right, nose tip, mouth corner at image left, at image right
REASONS = (
    "empty",
    "unreadable",
    "truncated",
    "too_large",
    "unsupported",
    "no_face",
    "face_too_small",
    "no_usable_tag",
    "bad_sidecar",
    "duplicate",
    "near_duplicate",
)


# Columns that version 2 added; a set of version 1 reads as if they were there and null, "not recorded".
CONTAINER_COLUMNS = (
    pa.field("source_width", pa.int32()),
    pa.field("source_height", pa.int32()),
    pa.field("jpeg_tables", pa.string()),
    pa.field("chroma", pa.string()),
    pa.field("bit_depth", pa.int8()),
    pa.field("pixel_mode", pa.string()),
    pa.field("icc_profile", pa.bool_()),
)


def label_column(tag: str) -> str:
    """Shard column of a tag's label."""
    return f"label_{tag}"


def shard_schema() -> pa.Schema:
    """Columns of a shard; one row is one face crop.

    ``id`` is sha-256 of the source bytes plus the face's index; ``image`` the crop as PNG (lossless, so that no
    second JPEG trace is planted); ``box`` (x, y, w, h) in pixels of the source photo after EXIF orientation;
    ``landmarks`` 5 x (x, y) in pixels of the crop; labels are int8 with -1 = absent; raw EXIF values keep their
    units (ISO speed, f-number, seconds, millimetres) and are null when absent. ``codec``, ``jpeg_quality`` (null: no
    JPEG) and ``CONTAINER_COLUMNS`` describe the source file (``container.Container``); ``source_width`` and
    ``source_height`` are pixels of the upright photo.
    """
    raw = [pa.field(f"exif_{tag}", pa.float64()) for tag in ORDINAL_TAGS]
    raw += [pa.field(f"exif_{tag}", pa.string()) for tag in CATEGORICAL_TAGS]
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("photo", pa.string(), nullable=False),
            pa.field("split", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("path", pa.string(), nullable=False),
            pa.field("image", pa.binary(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("box", pa.list_(pa.float32(), 4), nullable=False),
            pa.field("landmarks", pa.list_(pa.float32(), 2 * LANDMARKS), nullable=False),
            pa.field("codec", pa.string(), nullable=False),
            pa.field("jpeg_quality", pa.float32()),
            *CONTAINER_COLUMNS,
            *[pa.field(label_column(tag), pa.int8(), nullable=False) for tag in TAGS],
            *raw,
        ]
    )


def with_container(table: pa.Table) -> pa.Table:
    """Rows of either version, with those of ``CONTAINER_COLUMNS`` that they lack as nulls at the end."""
    for field in CONTAINER_COLUMNS:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table


def quarantine_schema() -> pa.Schema:
    """Columns of quarantine.parquet; one row is one file or face that was not used."""
    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("face", pa.int32()),
            pa.field("reason", pa.string(), nullable=False),
            pa.field("detail", pa.string(), nullable=False),
        ]
    )


class Shard(BaseModel):
    """One Parquet file of a set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    split: str
    rows: int
    row_groups: list[int]
    sha256: str


class Manifest(BaseModel):
    """Index of a shard set: everything a reader may ask without opening a shard."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    kind: Literal["photographs", "generated"]
    shards: list[Shard]
    ordinal_edges: dict[str, tuple[float, float]]
    vocabularies: dict[str, list[str]]
    split_seed: int
    locator: str
    crop_scale: float
    min_face_px: int
    files_seen: int
    faces_seen: int
    rows: dict[str, int]
    sources: dict[str, int]
    quarantine: dict[str, int]

    def digest(self) -> str:
        """sha-256 of the manifest's content; two equal sets have equal digests."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def split(self, name: str) -> list[Shard]:
        """Shards of one split.

        Raises:
            ValueError: the set has no row in that split.
        """
        found = [shard for shard in self.shards if shard.split == name]
        if not found:
            raise ValueError(f"no rows in split {name!r}; this set has {self.rows}")
        return found


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a shard folder.

    Raises:
        FileNotFoundError: the folder holds none (never ingested, or the ingest did not finish).
        ValueError: it is not one of schema version 1 or 2.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: run jobs/ingest.py with output={folder} first")
    try:
        return Manifest.model_validate_json(file.read_text())
    except ValidationError as error:
        raise ValueError(f"{file} is not a manifest of schema version 1 or 2: {error}") from None


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
