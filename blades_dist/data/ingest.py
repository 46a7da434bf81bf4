"""Image files to Parquet shards, through Ray Data: hash, then crop, then pack. Only paths, hashes and counts go
through the driver, never images.

1. Every file is hashed: that gives its split, its place in the order, and exact duplicates.
2. Photos, ordered by hash and cut into parts of fixed size, become crops with raw EXIF values.
3. Parts are packed into shards, where ordinal values become levels by the tertiles of the training rows.

Stored by hash, any stretch of a shard is a fair sample of the collection, and nothing depends on the number of
tasks: two ingests of the same files write the same bytes.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
import ray
from ray.data import DataContext

from blades_dist.config import SPLITS, IngestConfig
from blades_dist.data.crops import Photo, process_photo, split_of, write_part
from blades_dist.data.exif import tertile_edges
from blades_dist.data.progress import Progress, say
from blades_dist.data.records import QUARANTINE, Manifest, Shard, read_manifest
from blades_dist.data.shards import STATE, file_sha256, pack, publish, write_quarantine
from blades_dist.data.sources import OTHER_SUFFIXES, SourceError, SourceFile, list_images
from blades_dist.data.stream import quiet_ray_data
from blades_dist.tasks import ORDINAL_TAGS, TAGS, vocabulary

PHOTOS_PER_PART = 32
FILES_PER_HASH_TASK = 256
VERSION = 1  # of what ingest makes of the same files; raised when that changes
_BUILDING = ".building"

Rejections = list[tuple[str, int | None, str, str]]  # path, face, reason, detail


class IngestError(RuntimeError):
    """The counts of an ingest do not add up: some file was neither written nor quarantined. A bug, not bad input."""


def ingest(config: IngestConfig) -> Manifest:
    """Writes the shard set of a folder of images; returns at once when it is there already, made of the same files.

    Needs a connection to Ray; every node must see ``source`` and ``output`` under the same paths.

    Raises:
        SourceError: ``source`` is no folder or holds no image, or ``output`` cannot be written.
        IngestError: the counts do not add up.
    """
    files = list_images(config.source)
    fingerprint = _fingerprint(config, files)
    finished = _finished(config.output, fingerprint)
    if finished is not None:
        say(f"{config.output} is up to date with {config.source} ({len(files)} files): nothing to do")
        return finished
    building = _fresh(config.output / _BUILDING)
    photos, rejected = _select(_hash(files, config), files, config)
    parts, outcomes = _crop(photos, config, building)
    rejected += [(path, *rest) for path, _, _, refused in outcomes for rest in refused]
    edges = config.ordinal_edges if config.ordinal_edges is not None else _edges(parts, config)
    shards = _pack(parts, edges, config, building)
    manifest = _manifest(config, files, parts, outcomes, rejected, edges, shards)
    write_quarantine(rejected, building / QUARANTINE)
    state = {"fingerprint": fingerprint, "manifest": manifest.digest()}
    publish(building, config.output, manifest, json.dumps(state) + "\n")
    shutil.rmtree(building)
    _summarise(config, manifest)
    return manifest


def _fingerprint(config: IngestConfig, files: list[SourceFile]) -> str:
    """Of everything that the set depends on: parameters, and names, sizes and times of files and sidecars."""
    digest = hashlib.sha256(f"{VERSION}\n{config.model_dump_json(exclude={'output', 'ray'})}\n".encode())
    for file in files:
        digest.update(f"{file}\n".encode())
    return digest.hexdigest()


def _finished(output: Path, fingerprint: str) -> Manifest | None:
    try:
        state = json.loads((output / STATE).read_text())
        manifest = read_manifest(output)
    except (OSError, ValueError):
        return None
    same = isinstance(state, dict) and state == {"fingerprint": fingerprint, "manifest": manifest.digest()}
    return manifest if same and all((output / shard.name).is_file() for shard in manifest.shards) else None


def _fresh(folder: Path) -> Path:
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError as error:
        raise SourceError(f"output: cannot write to {folder.parent}: {error.strerror}") from None
    return folder.resolve()


def _hash(files: list[SourceFile], config: IngestConfig) -> dict[str, tuple[str, str]]:
    """Path to (sha-256, "") or ("", why not) of every file that is worth opening."""
    worth = [file.path for file in files if _early_rejection(file, config) is None]
    tasks = [worth[i : i + FILES_PER_HASH_TASK] for i in range(0, len(worth), FILES_PER_HASH_TASK)]
    progress = Progress("hashed", len(worth), "files")
    hashes: dict[str, tuple[str, str]] = {}
    for result in _run(tasks, partial(_hash_task, folder=config.source.resolve())):
        hashes |= {path: (sha256, problem) for path, sha256, problem in result}
        progress.add(len(result))
    return hashes


def _hash_task(paths: list[str], folder: Path) -> list[tuple[str, str, str]]:
    results = []
    for path in paths:
        try:
            results.append((path, file_sha256(folder / path), ""))
        except OSError as error:
            results.append((path, "", error.strerror or type(error).__name__))
    return results


def _early_rejection(file: SourceFile, config: IngestConfig) -> tuple[str, str] | None:
    if file.problem:
        return "unreadable", file.problem
    if file.size == 0:
        return "empty", "the file has no bytes"
    if file.size > config.max_bytes:
        return "too_large", f"{file.size} bytes; the limit is {config.max_bytes}"
    if file.path.lower().endswith(OTHER_SUFFIXES):
        return "unsupported", f"{Path(file.path).suffix.lower()} files; supported are JPEG, PNG, WebP and TIFF"
    return None


def _select(
    hashes: dict[str, tuple[str, str]], files: list[SourceFile], config: IngestConfig
) -> tuple[list[Photo], Rejections]:
    """Photos to decode, ordered by hash, and the files that are out already; of equal files the first path stays."""
    rejected: Rejections = []
    photos: dict[str, Photo] = {}
    for file in files:
        early = _early_rejection(file, config)
        if early is None:
            sha256, problem = hashes[file.path]
            if problem:
                early = "unreadable", problem
            elif sha256 in photos:
                early = "duplicate", f"same bytes as {photos[sha256].path}"
            else:
                split = split_of(sha256, config.split_seed, config.splits)
                photos[sha256] = Photo(file.path, file.source, sha256, split)
        if early is not None:
            rejected.append((file.path, None, *early))
    return sorted(photos.values(), key=lambda photo: photo.sha256), rejected


def _crop(photos: list[Photo], config: IngestConfig, building: Path) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Crops every photo. Returns what each part holds, in order, and (path, faces, rows, rejected) of each photo."""
    tasks: list[dict[str, Any]] = []
    for split in SPLITS:
        mine = [asdict(photo) for photo in photos if photo.split == split]
        for i in range(0, len(mine), PHOTOS_PER_PART):
            tasks.append({"part": len(tasks), "split": split, "photos": mine[i : i + PHOTOS_PER_PART]})
    progress = Progress("cropped", len(photos), "photos")
    parts, outcomes = [], []
    for part in _run(tasks, partial(_crop_task, folder=config.source.resolve(), building=building, config=config)):
        outcomes += part.pop("outcomes")
        parts.append(part)
        progress.add(part["photos"])
    return sorted(parts, key=lambda part: part["part"]), outcomes


def _crop_task(task: dict[str, Any], folder: Path, building: Path, config: IngestConfig) -> dict[str, Any]:
    cv2.setNumThreads(1)
    outcomes = [process_photo(folder, Photo(**photo), config) for photo in task["photos"]]
    rows = [row for outcome in outcomes for row in outcome.rows]
    values = {tag: Counter(row[f"exif_{tag}"] for row in rows) for tag in ORDINAL_TAGS}
    return {
        "part": task["part"],
        "split": task["split"],
        "photos": len(outcomes),
        "rows": len(rows),
        "bytes": write_part(rows, _part(building, task["part"])),
        "sources": Counter(row["source"] for row in rows),
        "values": {tag: [item for item in counts.items() if item[0] is not None] for tag, counts in values.items()},
        "outcomes": [(o.path, o.faces, len(o.rows), o.rejected) for o in outcomes],
    }


def _part(building: Path, number: int) -> Path:
    return building / f"part-{number:06d}.parquet"


def _edges(parts: list[dict[str, Any]], config: IngestConfig) -> dict[str, tuple[float, float]]:
    """Tertiles of the training rows' values. Generated images have no settings of a camera to rank."""
    edges = {}
    for tag in ORDINAL_TAGS if config.kind == "photographs" else ():
        counts: Counter[float] = Counter()
        for part in parts:
            if part["split"] == "train":
                counts.update(dict(part["values"][tag]))
        cut = tertile_edges(counts)
        if cut is not None:
            edges[tag] = cut
    return edges


def _pack(
    parts: list[dict[str, Any]], edges: dict[str, tuple[float, float]], config: IngestConfig, building: Path
) -> list[Shard]:
    tasks: list[dict[str, Any]] = []
    for split in SPLITS:
        shards: list[list[int]] = []
        size = 0
        for part in parts:
            if part["split"] == split and part["rows"]:
                if not shards or size >= config.shard_mebibytes * 2**20:
                    shards.append([])
                    size = 0
                shards[-1].append(part["part"])
                size += part["bytes"]
        tasks += [
            {"place": len(tasks) + n, "name": f"{split}-{n:05d}.parquet", "split": split, "parts": members}
            for n, members in enumerate(shards)
        ]
    progress = Progress("packed", len(tasks), "shards")
    packed = []
    function = partial(_pack_task, edges=edges, rows_per_group=config.rows_per_group, building=building)
    for result in _run(tasks, function):
        packed.append((result["place"], Shard.model_validate(result["shard"])))
        progress.add(1)
    return [shard for _, shard in sorted(packed, key=lambda item: item[0])]


def _pack_task(
    task: dict[str, Any], edges: dict[str, tuple[float, float]], rows_per_group: int, building: Path
) -> dict[str, Any]:
    parts = [_part(building, number) for number in task["parts"]]
    shard = pack(parts, building / task["name"], task["split"], edges, rows_per_group)
    return {"place": task["place"], "shard": shard.model_dump()}


def _run(tasks: Sequence[Any], function: Callable[[Any], Any]) -> Iterator[Any]:
    """``function`` of every task in a Ray task of its own; results as they come. Both sides travel as JSON."""
    if not tasks:
        return
    context = quiet_ray_data()
    context.execution_no_progress_timeout_s = -1  # a slow file system is not ours to judge
    with DataContext.current(context):
        items = [{"json": json.dumps(task)} for task in tasks]
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            partial(_json_task, function=function), batch_size=None, batch_format="pyarrow", num_cpus=1
        )
        tables = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for table in tables:
        for text in table["json"].to_pylist():
            yield json.loads(text)


def _json_task(table: pa.Table, function: Callable[[Any], Any]) -> pa.Table:
    return pa.table({"json": [json.dumps(function(json.loads(text))) for text in table["json"].to_pylist()]})


def _manifest(
    config: IngestConfig,
    files: list[SourceFile],
    parts: list[dict[str, Any]],
    outcomes: list[list[Any]],
    rejected: Rejections,
    edges: dict[str, tuple[float, float]],
    shards: list[Shard],
) -> Manifest:
    """The manifest of a set whose counts add up; see ``IngestError``."""
    written = {path for path, _, rows, _ in outcomes if rows}
    out = {path for path, _, _, _ in rejected}
    faces = sum(count for _, count, _, _ in outcomes)
    rows = {split: sum(shard.rows for shard in shards if shard.split == split) for split in SPLITS}
    refused_faces = sum(face is not None for _, face, _, _ in rejected)
    lost = {file.path for file in files} - written - out
    if lost or len(written | out) != len(files):
        raise IngestError(f"{len(lost)} of {len(files)} files unaccounted for, the first: {sorted(lost)[:3]}")
    if faces != sum(rows.values()) + refused_faces or sum(rows.values()) != sum(part["rows"] for part in parts):
        raise IngestError(f"{faces} faces seen, but {sum(rows.values())} written and {refused_faces} quarantined")
    sources: Counter[str] = Counter()
    for part in parts:
        sources.update(part["sources"])
    return Manifest(
        locator=config.locator,
        crop_scale=config.crop_scale,
        min_face_px=config.min_face_px,
        kind=config.kind,
        shards=shards,
        ordinal_edges={tag: edges[tag] for tag in ORDINAL_TAGS if tag in edges},
        vocabularies={tag: list(vocabulary(tag)) for tag in TAGS},
        split_seed=config.split_seed,
        files_seen=len(files),
        faces_seen=faces,
        rows=rows,
        sources=dict(sorted(sources.items())),
        quarantine=dict(sorted(Counter(reason for _, _, reason, _ in rejected).items())),
    )


def _summarise(config: IngestConfig, manifest: Manifest) -> None:
    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"

    say(f"{manifest.files_seen} files, {manifest.faces_seen} faces seen")
    say(f"rows: {listed(manifest.rows)}")
    say(f"quarantine: {listed(manifest.quarantine)}")
    if not manifest.shards:
        say("no face could be used; the quarantine says why")
    say(f"written to {config.output}")
