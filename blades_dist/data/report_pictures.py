"""The pictures of a data report: samples of what was taken, and of what was not. No Ray here."""

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType

import numpy as np
import pyarrow.parquet as pq

from blades_dist.config import IngestConfig
from blades_dist.data.crops import Photo
from blades_dist.data.faces import Face
from blades_dist.data.records import LANDMARKS, QUARANTINE, Manifest
from blades_dist.data.sandbox import PhotoProcess, SandboxError
from blades_dist.data.sources.base import Annotations
from blades_dist.data.sources.storage import is_local, local_path
from blades_dist.data.thumbnails import thumbnail

SEED = 0
SHEET = 48  # faces on a contact sheet
EXAMPLES, PAIRS = 6, 12  # shown of each reason; of near duplicates
SIDE, SHEET_SIDE = 160, 96  # pixels
_SAME = "shows the same picture as "
_GIVEN = Annotations(faces=[Face((0.0, 0.0, 1.0, 1.0), np.zeros((LANDMARKS, 2), np.float32))], frame=(1.0, 1.0))


@dataclass(frozen=True)
class Picture:
    """A JPEG for looking at, or None and ``why`` there is none; ``text`` says what else is to be known of it."""

    path: str
    jpeg: bytes | None
    why: str = ""
    text: str = ""


@dataclass(frozen=True)
class Refused:
    """What quarantine.parquet holds: rows of each reason, and a fair sample of them as (path, face, detail)."""

    counts: Counter[str]
    samples: dict[str, list[tuple[str, int | None, str]]]


def contact_sheet(folder: Path, manifest: Manifest, split: str) -> list[Picture]:
    """A seeded sample of a split's faces, in stored order; reads only the row groups that hold one."""
    shards = [shard for shard in manifest.shards if shard.split == split]
    ends = np.cumsum([0, *(rows for shard in shards for rows in shard.row_groups)])
    places = [(shard.name, group) for shard in shards for group in range(len(shard.row_groups))]
    rng = np.random.default_rng([SEED, len(split)])
    chosen = np.sort(rng.choice(int(ends[-1]), min(SHEET, int(ends[-1])), replace=False))
    by_group = defaultdict(list)
    for row in chosen.tolist():
        place = int(np.searchsorted(ends, row, side="right")) - 1
        by_group[places[place]].append(row - int(ends[place]))
    return [picture for (name, group), rows in by_group.items() for picture in _faces(folder / name, group, rows)]


def _faces(shard: Path, group: int, rows: list[int]) -> Iterator[Picture]:
    columns = ["image", "path", "source", "width", "height", "codec", "jpeg_quality"]
    with pq.ParquetFile(shard) as file:
        for row in file.read_row_group(group, columns=columns, use_threads=False).take(rows).to_pylist():
            quality = "" if row["jpeg_quality"] is None else f" {row['jpeg_quality']:.0f}"
            text = f"{row['source']}, {row['width']} x {row['height']} pixels, {row['codec']}{quality}"
            yield Picture(row["path"], thumbnail(row["image"], SHEET_SIDE), text=text)


def refused(folder: Path) -> Refused:
    """Counts the quarantine and samples each reason; memory is that of the samples."""
    counts: Counter[str] = Counter()
    heaps: dict[str, list[tuple[int, str, int, str]]] = defaultdict(list)
    with pq.ParquetFile(folder / QUARANTINE) as file:
        for batch in file.iter_batches(8192, use_threads=False):
            for row in batch.to_pylist():
                reason, face = row["reason"], -1 if row["face"] is None else row["face"]
                counts[reason] += 1
                key = f"{SEED}/{row['path']}/{face}/{row['detail']}".encode()
                # The rows with the smallest hashes: whatever their order, and however many there are.
                item = (-int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()), row["path"], face, row["detail"])
                if len(heaps[reason]) < max(EXAMPLES, PAIRS):
                    heapq.heappush(heaps[reason], item)
                else:
                    heapq.heappushpop(heaps[reason], item)
    samples = {
        reason: [(path, None if face < 0 else face, detail) for _, path, face, detail in sorted(heap, reverse=True)]
        for reason, heap in heaps.items()
    }
    return Refused(counts, samples)


def examples(found: Refused, originals: "Originals") -> dict[str, list[Picture]]:
    """Some pictures of every reason but near duplicates, with path and detail."""
    return {
        reason: [
            originals.picture(path, detail if face is None else f"face {face}: {detail}")
            for path, face, detail in sample[:EXAMPLES]
        ]
        for reason, sample in found.samples.items()
        if reason != "near_duplicate"
    }


def near_duplicates(found: Refused, originals: "Originals") -> list[tuple[Picture, Picture]]:
    """Pairs of a photo that was dropped and the one that it shows again."""
    pairs = [
        (path, detail.removeprefix(_SAME))
        for path, _, detail in found.samples.get("near_duplicate", [])[:PAIRS]
        if detail.startswith(_SAME)
    ]
    return [(originals.picture(path, "dropped"), originals.picture(kept, "kept")) for path, kept in pairs]


class Originals:
    """Files of the local folders that were ingested; a context manager.

    They are decoded in the same bounded process as in an ingest: some of them are in quarantine because they are bad.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        folders = [local_path(uri) for uri in sources if is_local(uri)]
        self._folders = [folder for folder in folders if folder.is_dir()]
        # A crop of a "face" as large as the photo is its middle square.
        self._config = IngestConfig(
            source=("-",), output=Path("-"), kind="generated", min_tags=0, min_face_px=16, crop_scale=1.0
        )
        self._process = PhotoProcess(self._config)

    def __enter__(self) -> "Originals":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.close()

    def picture(self, path: str, text: str) -> Picture:
        """The middle square of the photo at a path in its collection, or why it cannot be shown."""
        try:
            data = self._read(path)
            sha256 = hashlib.sha256(data).hexdigest()
            outcome = self._process.process(Photo(path, "", sha256, ""), data, _GIVEN)
        except (OSError, LookupError, ValueError, SandboxError):
            return Picture(path, None, "not reachable", text)
        if not len(outcome.rows):
            return Picture(path, None, "no picture: " + (outcome.rejected[0][1] if outcome.rejected else ""), text)
        return Picture(path, thumbnail(outcome.rows["image"][0].as_py(), SIDE), text=text)

    def _read(self, path: str) -> bytes:
        relative = PurePosixPath(path)
        if relative.is_absolute() or ".." in relative.parts:
            raise LookupError(path)
        # In two sources the same path may name two photos; then it is not known which.
        (file,) = (folder / relative for folder in self._folders if (folder / relative).is_file())
        with file.open("rb") as opened:
            return opened.read(self._config.max_bytes + 1)
