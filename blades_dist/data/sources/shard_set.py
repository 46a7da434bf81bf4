"""A shard set as a source: rows that exist already, for other splits or bins, or one set of several. No Ray here."""

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from blades_dist.data.decode import Rejected
from blades_dist.data.records import CONTAINER_COLUMNS, MANIFEST, Manifest, shard_schema, with_container
from blades_dist.data.sources.base import Entry, Source, SourceError
from blades_dist.data.sources.storage import below, open_storage, reason

_COLUMNS = ("photo", "source", "path")


class ShardSource(Source):
    """Photos of a finished set, in the order of its shards; all rows of a photo are one entry.

    ``note`` says where the rows lie. ``size`` is the photo's share of its row groups' image bytes, which costs nothing
    to know. ``mark`` is the shard's sha-256. The photos themselves are not in a set, so there is no ``data``.
    """

    def __init__(self, uri: str, kind: str | None = None) -> None:
        """``kind``: what the set must hold, "photographs" or "generated"; None: either."""
        self.storage = open_storage(uri)
        self._kind = kind
        # The last row group of each split's shards: entries come in the order of hashes, which splits interleave.
        self._groups: dict[str, tuple[str, int, pa.Table]] = {}

    def manifest(self) -> Manifest:
        """The set's manifest.

        Raises:
            SourceError: there is none that this version reads, or it is of the other kind.
        """
        where = below(self.storage.uri, MANIFEST)
        try:
            manifest = Manifest.model_validate_json(self.storage.read(MANIFEST))
        except OSError as error:
            raise SourceError(f"source: cannot read {where}: {reason(error)}; a finished shard set has one") from None
        except ValidationError as error:
            raise SourceError(f"source: {where} is not a manifest that this version reads: {error}") from None
        if self._kind not in (None, manifest.kind):
            raise SourceError(
                f"source: {self.storage.uri} holds {manifest.kind}, not {self._kind}; set kind={manifest.kind}"
            )
        return manifest

    def entries(self) -> Iterator[Entry]:
        manifest = self.manifest()
        added = {field.name for field in CONTAINER_COLUMNS} if manifest.schema_version == 1 else set()
        needed = [name for name in shard_schema().names if name not in added]
        for shard in manifest.shards:
            try:
                yield from self._of_shard(shard.name, shard.split, shard.sha256, needed)
            except (OSError, pa.ArrowException) as error:
                raise SourceError(f"source: {below(self.storage.uri, shard.name)}: {reason(error)}") from None

    def data(self, entry: Entry) -> bytes:
        raise Rejected("unsupported", "a shard set holds faces, not photographs")

    def rows(self, entry: Entry) -> pa.Table:
        """Rows of one photo with the columns of ``records.shard_schema``; null where the set's version has none."""
        note = json.loads(entry.note)
        parts = [
            self._group(note["split"], note["shard"], group).slice(first, count) for group, first, count in note["rows"]
        ]
        return pa.concat_tables(parts)

    def _of_shard(self, name: str, split: str, sha256: str, needed: list[str]) -> Iterator[Entry]:
        with self.storage.open(name) as opened, pq.ParquetFile(opened) as file:
            missing = [column for column in needed if column not in file.schema_arrow.names]
            if missing:
                raise SourceError(
                    f"source: {below(self.storage.uri, name)} has no column {', '.join(missing)}; it was written by "
                    "another version, so ingest the photographs again"
                )
            for (photo, source, path), group in groupby(_rows_of(file), key=lambda row: row[0]):
                spans: list[list[int]] = []
                size = 0.0
                for _, number, row, cost in group:
                    size += cost
                    if spans and spans[-1][0] == number:
                        spans[-1][2] += 1
                    else:
                        spans.append([number, row, 1])
                note = json.dumps({"shard": name, "split": split, "rows": spans})
                yield Entry(path, source, max(1, round(size)), sha256, note, photo)

    def _group(self, split: str, name: str, number: int) -> pa.Table:
        cached = self._groups.get(split)
        if cached is None or cached[:2] != (name, number):
            with self.storage.open(name) as opened, pq.ParquetFile(opened) as file:
                table = with_container(file.read_row_group(number, use_threads=False))
            cached = self._groups[split] = name, number, table.select(shard_schema().names).cast(shard_schema())
        return cached[2]


def _rows_of(file: pq.ParquetFile) -> Iterator[tuple[tuple[Any, ...], int, int, float]]:
    """(photo, source, path), row group, row within it and bytes of every row; memory is a row group without images."""
    for number in range(file.num_row_groups):
        about = file.metadata.row_group(number)
        columns = (about.column(i) for i in range(about.num_columns))
        image = next(column for column in columns if column.path_in_schema == "image")
        cost = image.total_compressed_size / max(1, about.num_rows)
        table = file.read_row_group(number, columns=list(_COLUMNS), use_threads=False)
        for row, names in enumerate(zip(*(table[name].to_pylist() for name in _COLUMNS), strict=True)):
            yield names, number, row, cost
