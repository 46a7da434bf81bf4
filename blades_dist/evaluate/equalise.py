"""One and the same container for both sides of a test set.

Every crop is brought to one common side, then through one and the same JPEG encoder, and is stored as a lossless PNG
again. What that cannot remove: traces in the pixels of what a file went through before, how a face is framed, what is
shown (docs/testsets.md).
"""

import json
import math
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blades_dist.data.crops import stored_crop
from blades_dist.data.decode import open_image
from blades_dist.data.pipeline.place import digest
from blades_dist.data.read import decoded
from blades_dist.data.records import (
    SCHEMA_VERSION,
    Manifest,
    Shard,
    quarantine_schema,
    read_manifest,
    shard_schema,
    with_container,
)
from blades_dist.data.shards import file_sha256, publish, shard_name, shard_writer
from blades_dist.files import write_atomically
from blades_dist.perturb import jpeg_bytes, resized


@dataclass(frozen=True)
class Count:
    """Faces of one source in one split: written, and left out because they are smaller than the common side."""

    kind: str
    split: str
    source: str
    kept: int
    left_out: int


@dataclass
class _Tally:
    """What was seen so far: photographs, and (split, source) of the faces written and left out."""

    photos: set[str] = field(default_factory=set)
    kept: Counter[tuple[str, str]] = field(default_factory=Counter)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    quarantine: list[dict[str, Any]] = field(default_factory=list)


def write_set(
    folder: Path, manifest: Manifest, splits: Sequence[str], target: Path, side: int, quality: int
) -> list[Count]:
    """Writes the splits of a set into the new folder ``target``, every face ``side`` x ``side`` pixels and JPEG of
    ``quality``, with manifest and quarantine.

    Raises:
        ValueError: a split has no face of that size.
    """
    target.mkdir()
    tally, shards = _Tally(), []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for split in splits:
            here: list[Shard] = []
            for old in manifest.split(split):
                groups = _write_shard(folder / old.name, target / "shard.tmp", split, side, quality, tally, pool)
                if groups:
                    here.append(_named(target / "shard.tmp", split, len(here), groups))
            if not here:
                raise ValueError(
                    f"equalise: no {manifest.kind} of split {split!r} in {folder} have crops of {side} pixels or more"
                )
            shards += here
    (target / "shard.tmp").unlink(missing_ok=True)
    pq.write_table(pa.Table.from_pylist(tally.quarantine, quarantine_schema()), target / "quarantine.tmp")
    state = json.dumps({"equalised_from": manifest.digest(), "side": side, "quality": quality}) + "\n"
    publish(target, _manifest_of(manifest, shards, tally), target / "quarantine.tmp", state)
    places = sorted({*tally.kept, *tally.left_out})
    return [Count(manifest.kind, *place, tally.kept[place], tally.left_out[place]) for place in places]


def shorter_sides(table: pa.Table) -> np.ndarray:
    """(n,) pixels of the shorter side of each row's crop."""
    return np.minimum(table["width"].to_numpy(), table["height"].to_numpy())


def _write_shard(
    source: Path, target: Path, split: str, side: int, quality: int, tally: _Tally, pool: ThreadPoolExecutor
) -> list[int]:
    """Rows of each row group written."""
    groups = []
    with shard_writer(target) as writer:
        for table in _row_groups(source):
            tally.photos.update(table["photo"].to_pylist())
            large = shorter_sides(table) >= side
            small, table = table.filter(pa.array(~large)), table.filter(pa.array(large))
            tally.left_out.update((split, source) for source in small["source"].to_pylist())
            tally.kept.update((split, source) for source in table["source"].to_pylist())
            tally.quarantine += [_refused(row, side) for row in small.drop_columns(["image"]).to_pylist()]
            if len(table):
                writer.write_table(_through(table, side, quality, pool))
                groups.append(len(table))
    return groups


def _named(written: Path, split: str, number: int, groups: list[int]) -> Shard:
    sha256 = file_sha256(written)
    shard = Shard(
        name=shard_name(split, number, sha256), split=split, rows=sum(groups), row_groups=groups, sha256=sha256
    )
    written.rename(written.with_name(shard.name))
    return shard


def _manifest_of(manifest: Manifest, shards: list[Shard], tally: _Tally) -> Manifest:
    sources: Counter[str] = Counter()
    for (_, source), count in tally.kept.items():
        sources[source] += count
    left_out = tally.left_out.total()
    changed: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "shards": shards,
        "files_seen": len(tally.photos),
        "faces_seen": tally.kept.total() + left_out,
        "rows": {split: sum(shard.rows for shard in shards if shard.split == split) for split in manifest.rows},
        "sources": dict(sorted(sources.items())),
        "quarantine": {"face_too_small": left_out} if left_out else {},
    }
    return manifest.model_copy(update=changed)


def _row_groups(file: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(file) as opened:
        for group in range(opened.num_row_groups):
            table = with_container(opened.read_row_group(group, use_threads=False))
            yield table.select(shard_schema().names).cast(shard_schema())


def _refused(row: dict[str, Any], side: int) -> dict[str, Any]:
    """A row of the quarantine; the face's number is the end of its id."""
    number = row["id"].rpartition("-")[2]
    detail = f"a crop of {row['width']} x {row['height']} pixels; both sides were brought to {side}"
    face = int(number) if number.isdecimal() else None
    return {"path": row["path"], "face": face, "reason": "face_too_small", "detail": detail}


def _through(table: pa.Table, side: int, quality: int, pool: ThreadPoolExecutor) -> pa.Table:
    """Rows with pictures that went through the common container, and what is recorded of them now."""
    rows = table.select(["id", "image", "landmarks"]).to_pylist()
    changed = list(pool.map(lambda row: _face(row, side, quality), rows))
    for name in changed[0]:
        column = shard_schema().field(name)
        values = pa.array([row[name] for row in changed], column.type)
        table = table.set_column(shard_schema().get_field_index(name), column, values)
    return table


def _face(row: dict[str, Any], side: int, quality: int) -> dict[str, Any]:
    """Changed columns of one row. The file that they describe is the crop's own, of which the face is the whole."""
    pixels = cv2.cvtColor(decoded(np.frombuffer(row["image"], np.uint8), row["id"]), cv2.COLOR_BGR2RGB)
    scale = side / np.array(pixels.shape[1::-1], float)
    points = (np.array(row["landmarks"], float).reshape(-1, 2) + 0.5) * scale - 0.5  # half-integers: pixel centres
    data = jpeg_bytes(resized(pixels, side, side), quality)
    image = open_image(data, side * side, len(data))
    return {
        "image": stored_crop(image.pixels()),
        "width": side,
        "height": side,
        "box": [0.0, 0.0, float(side), float(side)],
        "landmarks": points.ravel().tolist(),
        "codec": image.codec,
        "jpeg_quality": image.jpeg_quality,
        "source_width": side,
        "source_height": side,
        **vars(image.container),
    }


RECORD = "equalised.json"
PHOTOGRAPHS, GENERATED = "photographs", "generated"  # folders of the output, and the kinds of what is in them
BEST_QUALITY = 95  # where neither side is JPEG
_VERSION = 1  # of what is made of equal inputs


@dataclass(frozen=True)
class Equalised:
    """Where both sides lie now, the common ``side`` in pixels and JPEG ``quality``, and what became of the faces."""

    photographs: Path
    generated: Path
    side: int
    quality: int
    counts: tuple[Count, ...]

    def sentence(self) -> str:
        """What was done, for people."""
        kept, gone = (sum(getattr(count, name) for count in self.counts) for name in ("kept", "left_out"))
        return (
            f"Both sides equalised: {self.side} x {self.side} pixels, JPEG quality {self.quality}; {kept} faces kept, "
            f"{gone} left out because they are smaller."
        )


def equalise(
    real: Path,
    generated: Path,
    output: Path,
    splits: Sequence[str] = ("test",),
    real_splits: Sequence[str] | None = None,
    side: int | None = None,
    quality: int | None = None,
    keep: float = 0.95,
) -> Equalised:
    """Writes two shard sets below ``output`` whose files do not differ in anything that the shards record.

    Every face of ``splits`` (of the photographs ``real_splits``, if given: thresholds want a ``calibration`` split that
    went through the same) is made ``side`` x ``side`` pixels, never enlarged, and JPEG of ``quality``. Both are chosen
    from ``splits`` where they are not given: the largest side that at least ``keep`` of the photographs and of each
    generator's faces reach, and the lowest of their median JPEG qualities, at most ``BEST_QUALITY``. Smaller faces are
    left out, counted, and named in the set's quarantine. ``output`` appears whole or not at all, and is left alone when
    it was made of the same inputs already. Memory is a row group.

    Raises:
        FileNotFoundError: a set has no manifest.
        ValueError: a set is of the wrong kind or has no row in a split; no face of a side is large enough; a number is
            out of range; ``output`` holds something else, or the sets themselves.
    """
    inputs = {PHOTOGRAPHS: real, GENERATED: generated}
    wanted = {PHOTOGRAPHS: tuple(real_splits or splits), GENERATED: tuple(splits)}
    manifests = {kind: _manifest(folder, kind, wanted[kind]) for kind, folder in inputs.items()}
    _check(inputs, output, side, quality, keep)
    settings = {"splits": wanted, "side": side, "quality": quality, "keep": keep}
    key = digest(_VERSION, settings, {kind: manifest.digest() for kind, manifest in manifests.items()})
    done = _finished(output, key)
    if done is not None:
        return done
    groups = [group for kind, folder in inputs.items() for group in _groups(folder, manifests[kind], splits)]
    side = common_side([sizes for sizes, _ in groups], keep) if side is None else side
    quality = common_quality([qualities for _, qualities in groups]) if quality is None else quality
    staged = output.with_name(f".{output.name}.partial-{uuid.uuid4().hex[:12]}")
    staged.mkdir(parents=True)
    try:
        counts: list[Count] = []
        for kind, folder in inputs.items():
            counts += write_set(folder, manifests[kind], wanted[kind], staged / kind, side, quality)
        made = Equalised(output / PHOTOGRAPHS, output / GENERATED, side, quality, tuple(counts))
        write_atomically(staged / RECORD, _record(made, key, staged, settings))
        _put(staged, output)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return made


def common_side(groups: Sequence[np.ndarray], keep: float) -> int:
    """The largest side in pixels that at least the share ``keep`` of each group's crops (their shorter sides) reach."""
    return min(int(np.sort(sizes)[math.floor((1 - keep) * len(sizes) + 1e-9)]) for sizes in groups)


def common_quality(groups: Sequence[np.ndarray]) -> int:
    """The lowest of the groups' median JPEG qualities, rounded: files of quality 75 are estimated at 74.8. A file that
    is no JPEG (NaN) counts as ``BEST_QUALITY``."""
    medians = [np.median(np.nan_to_num(qualities, nan=BEST_QUALITY)) for qualities in groups]
    return max(1, min(BEST_QUALITY, round(min(medians))))


# Inputs --------------------------------------------------------------------------------------------------------------


def _manifest(folder: Path, kind: str, splits: Sequence[str]) -> Manifest:
    manifest = read_manifest(folder)
    if manifest.kind != kind:
        raise ValueError(f"equalise: {folder} holds {manifest.kind}, not {kind}")
    for split in splits:
        manifest.split(split)  # complains where it is empty
    return manifest


def _check(inputs: dict[str, Path], output: Path, side: int | None, quality: int | None, keep: float) -> None:
    if (side is not None and side < 8) or (quality is not None and not 1 <= quality <= 100) or not 0 < keep <= 1:
        raise ValueError(
            f"equalise: side is at least 8 pixels, quality 1 to 100, keep above 0 and at most 1; "
            f"got side={side}, quality={quality}, keep={keep}"
        )
    if any(folder.resolve().is_relative_to(output.resolve()) for folder in inputs.values()):
        raise ValueError(f"equalise: the sets to read lie in {output}; write to another folder")
    if output.exists() and not (output / RECORD).is_file() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"equalise: {output} holds something else; write to another folder")


def _groups(folder: Path, manifest: Manifest, splits: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Shorter sides and JPEG qualities (NaN: none) of the photographs, or of each generator's faces."""
    shards = [shard for split in splits for shard in manifest.split(split)]
    columns = ["source", "width", "height", "jpeg_quality"]
    table = pa.concat_tables([pq.read_table(folder / shard.name, columns=columns) for shard in shards])
    names = table["source"].unique().to_pylist() if manifest.kind == GENERATED else [None]
    parts = [table if name is None else table.filter(pc.equal(table["source"], name)) for name in names]
    return [(shorter_sides(part), part["jpeg_quality"].cast(pa.float64()).to_numpy()) for part in parts]


# Output --------------------------------------------------------------------------------------------------------------


def _record(made: Equalised, key: str, staged: Path, settings: dict[str, Any]) -> str:
    content = {
        "schema_version": 1,
        "made_of": key,
        "side": made.side,
        "quality": made.quality,
        "counts": [asdict(count) for count in made.counts],
        "settings": settings,
        "manifests": {kind: read_manifest(staged / kind).digest() for kind in (PHOTOGRAPHS, GENERATED)},
    }
    return json.dumps(content, indent=1) + "\n"


def _finished(output: Path, key: str) -> Equalised | None:
    """What lies in ``output`` already, when it was made of the same and is whole."""
    try:
        content = json.loads((output / RECORD).read_text())
        if content["made_of"] != key:
            return None
        for kind, expected in content["manifests"].items():
            manifest = read_manifest(output / kind)
            there = all((output / kind / shard.name).is_file() for shard in manifest.shards)
            if manifest.digest() != expected or not there:
                return None
        counts = tuple(Count(**count) for count in content["counts"])
        return Equalised(output / PHOTOGRAPHS, output / GENERATED, content["side"], content["quality"], counts)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _put(staged: Path, output: Path) -> None:
    """Puts a whole folder in the place of what an earlier call left there."""
    old = staged.with_name(staged.name + ".old")
    if output.exists():
        output.rename(old)
    staged.rename(output)
    shutil.rmtree(old, ignore_errors=True)
