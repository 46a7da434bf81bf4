"""Steps 1 and 2: what the collection holds, and the sha-256 of every item."""

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blades_dist.config import IngestConfig
from blades_dist.data.decode import Rejected
from blades_dist.data.pipeline.workspace import Workspace, digest, write_table
from blades_dist.data.sources.base import Entry, Source, SourceError
from blades_dist.data.sources.factory import open_source

ENTRIES_PER_FILE = 1024
# Rows are digested by these names: a finished set is known again by them, so ``Entry.note`` keeps its old one, "place".
LISTED = pa.schema(
    [
        pa.field("number", pa.int32()),  # index in ``config.source``
        *[pa.field(name, pa.string()) for name in ("path", "source")],
        pa.field("size", pa.int64()),
        *[pa.field(name, pa.string()) for name in ("mark", "place", "sha256", "reason", "detail")],
    ]
)


def list_collection(workspace: Workspace, config: IngestConfig) -> dict[str, Any]:
    """Writes the listing; returns how many ``files`` and ``entries`` it has, and its ``digest``.

    Memory is one file of the listing, whatever the collection holds.

    Raises:
        SourceError: a source cannot be listed, or there is no item in any.
    """
    marks, entries, files = hashlib.sha256(), 0, 0
    coming = _rows(config)
    while rows := list(islice(coming, ENTRIES_PER_FILE)):
        marks.update(digest(*rows).encode())
        write_table(pa.Table.from_pylist(rows, LISTED), workspace.table("listing", files))
        entries, files = entries + len(rows), files + 1
    if not entries:
        raise SourceError(f"source: no image in {', '.join(config.source)}")
    return {"files": files, "entries": entries, "digest": marks.hexdigest()}


def hash_file(number: int, workspace: Workspace, config: IngestConfig) -> int:
    """Adds sha-256 to the rows of one file of the listing, or why there is none; returns how many they are."""
    table = pq.read_table(workspace.table("listing", number), use_threads=False)
    rows = table.to_pylist()
    cached = workspace.cached("hashes", digest(rows, config.max_bytes))
    if not cached.exists():
        text = config.model_dump_json()
        for row in rows:
            if not row["reason"]:
                _hash(row, source_of(workspace.run, row["number"], text), config.max_bytes)
        write_table(pa.Table.from_pylist(rows, LISTED), cached)
    write_table(pq.read_table(cached, use_threads=False), workspace.table("index", number), write_statistics=["sha256"])
    return len(rows)


@lru_cache(maxsize=8)
def source_of(run: str, number: int, config: str) -> Source:
    """A source by its index in ``config.source``, opened once a process and run."""
    parsed = IngestConfig.model_validate_json(config)
    return open_source(parsed.source[number], parsed)


def entry_of(row: dict[str, Any]) -> Entry:
    return Entry(row["path"], row["source"], row["size"], row["mark"], row["place"], row["sha256"])


def _rows(config: IngestConfig) -> Iterator[dict[str, Any]]:
    for number, uri in enumerate(config.source):
        for entry in open_source(uri, config).entries():
            reason, detail = entry.problem or _early(entry, config) or (None, None)
            yield {
                "number": number,
                "path": entry.path,
                "source": entry.source,
                "size": entry.size,
                "mark": entry.mark,
                "place": entry.note,
                "sha256": entry.sha256,
                "reason": reason,
                "detail": detail,
            }


def _early(entry: Entry, config: IngestConfig) -> tuple[str, str] | None:
    if entry.size == 0:
        return "empty", "the file has no bytes"
    if entry.size > config.max_bytes and not entry.sha256:
        return "too_large", f"{entry.size} bytes; the limit is {config.max_bytes}"
    return None


def _hash(row: dict[str, Any], source: Source, max_bytes: int) -> None:
    if row["sha256"]:
        return
    try:
        data = source.data(entry_of(row))
    except Rejected as error:
        row["reason"], row["detail"] = error.reason, error.detail
    except OSError as error:
        row["reason"], row["detail"] = "unreadable", error.strerror or str(error) or type(error).__name__
    else:
        if not data:
            row["reason"], row["detail"] = "empty", "the file has no bytes"
        elif len(data) > max_bytes:
            row["reason"], row["detail"] = "too_large", f"{len(data)} bytes; the limit is {max_bytes}"
        else:
            row["sha256"] = hashlib.sha256(data).hexdigest()
