"""A collection of photographs to Parquet shards, through Ray Data. Only numbers and names of files below the output
folder go through the driver: its memory does not grow with the collection.

1. List: every item of the sources. 2. Hash: sha-256 of each; exact duplicates go. 3. Plan: photos in the order of
their hashes. 4. Crop: photos, a part of 64 at a time, become rows with raw EXIF values and an outcome each.
5. Near duplicates across the collection go. 6. Bin edges: tertiles of the training rows. 7. Pack: rows to shards.
8. Close: the quarantine, and counts that must add up.

Stored by hash, any stretch of a shard is a fair sample of the collection, and nothing depends on the number of tasks.
Steps 2, 4 and 7 write files named by what they were made of, so an ingest that was killed goes on where it was.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext

from blades_dist.config import SPLITS, IngestConfig
from blades_dist.data.exif import tertile_edges
from blades_dist.data.locate import check_locator
from blades_dist.data.pipeline.closing import close, quarantine_file
from blades_dist.data.pipeline.cropping import crop_part, gather
from blades_dist.data.pipeline.listing import hash_file, list_collection
from blades_dist.data.pipeline.packing import count_values, cut, merge_counts, pack_shard
from blades_dist.data.pipeline.place import Place, config_digest, digest
from blades_dist.data.pipeline.planning import plan, plans
from blades_dist.data.pipeline.resolving import band_tasks, find_pairs, resolve
from blades_dist.data.pipeline.summary import manifest_of, summarise
from blades_dist.data.progress import Progress, say
from blades_dist.data.records import Manifest, Shard, read_manifest
from blades_dist.data.shards import STATE, publish, tidy
from blades_dist.data.sources.base import SourceError
from blades_dist.data.sources.factory import settled
from blades_dist.data.stream import quiet_ray_data
from blades_dist.tasks import ORDINAL_TAGS

_BUILDING = ".building"
_SPAN = 1024  # tasks that one Ray Data pipeline holds: what the driver knows at a time


def ingest(config: IngestConfig) -> Manifest:
    """Writes the shard set of a collection; returns at once when it is there already, made of the same items.

    An ingest that was killed is taken up where it was. Needs a connection to Ray; every node must see ``output``, and
    sources that are folders, under the same paths.

    Raises:
        SourceError: a source cannot be listed or holds no image, or ``output`` cannot be written.
        LocatorError: the locator's model file is missing or not one.
        IngestError: the counts do not add up.
    """
    check_locator(config)
    config = settled(config)
    place = _place(config)
    listed = _listed(place, config)
    fingerprint = digest(config_digest(config), listed["digest"])
    finished = _finished(config, fingerprint)
    if finished is not None:
        tidy(config.output, finished)
        shutil.rmtree(place.building, ignore_errors=True)
        say(f"{config.output} is up to date with its source ({listed['entries']} files): nothing to do")
        return finished
    _map("hashed", "files", range(listed["files"]), partial(hash_file, place=place, config=config), listed["entries"])
    parts, photos = _plan(place, listed["entries"])
    _map("cropped", "photos", parts, partial(crop_part, place=place, config=config), photos)
    plan_numbers = range(plans(listed["entries"]))
    _do(plan_numbers, partial(gather, place=place, config=config))
    if config.near_duplicate_bits:
        _do(band_tasks(photos), partial(find_pairs, place=place, bits=config.near_duplicate_bits))
    _do([None], partial(_resolve, place=place, config=config))
    edges = _edges(plan_numbers, place, config)
    shards = _pack(place, config, edges)
    (counts,) = _each([None], partial(_close, place=place))
    manifest = manifest_of(config, listed["entries"], counts, edges, shards)
    state = {"fingerprint": fingerprint, "manifest": manifest.digest()}
    publish(config.output, manifest, quarantine_file(place), json.dumps(state) + "\n")
    shutil.rmtree(place.building, ignore_errors=True)
    summarise(config, manifest)
    return manifest


def _place(config: IngestConfig) -> Place:
    building = config.output / _BUILDING
    try:
        building.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(f"output: cannot write to {config.output}: {error.strerror}") from None
    for old in building.glob("run-*"):  # of a run that was killed; what is worth keeping lies in the cache
        shutil.rmtree(old, ignore_errors=True)
    return Place.fresh(building.resolve())


def _listed(place: Place, config: IngestConfig) -> dict[str, Any]:
    """What ``list_collection`` returns, from a task."""
    (found,) = _each([None], partial(_list, place=place, config=config))
    if "error" in found:
        raise SourceError(found["error"])
    return dict(found)


def _list(_: None, place: Place, config: IngestConfig) -> dict[str, Any]:
    try:
        return list_collection(place, config)
    except SourceError as error:
        return {"error": str(error)}


def _resolve(_: None, place: Place, config: IngestConfig) -> int:
    return resolve(place, config)


def _close(_: None, place: Place) -> dict[str, Any]:
    return close(place)


def _cut(_: None, place: Place, mebibytes: int) -> list[dict[str, Any]]:
    return cut(place, mebibytes)


def _finished(config: IngestConfig, fingerprint: str) -> Manifest | None:
    try:
        state = json.loads((config.output / STATE).read_text())
        manifest = read_manifest(config.output)
    except (OSError, ValueError):
        return None
    same = isinstance(state, dict) and state == {"fingerprint": fingerprint, "manifest": manifest.digest()}
    return manifest if same and all((config.output / shard.name).is_file() for shard in manifest.shards) else None


def _plan(place: Place, entries: int) -> tuple[Iterator[tuple[int, int]], int]:
    """Row groups of all plans, (plan, group), and how many photos they hold."""
    of = plans(entries)
    planned = sorted(_each(range(of), partial(_numbered_plan, place=place, of=of)))
    units = ((number, group) for number, groups, _ in planned for group in range(groups))
    return units, sum(photos for _, _, photos in planned)


def _numbered_plan(number: int, place: Place, of: int) -> tuple[int, int, int]:
    made = plan(number, place, of)
    return number, made["groups"], made["photos"]


def _edges(plan_numbers: Sequence[int], place: Place, config: IngestConfig) -> dict[str, tuple[float, float]]:
    """Tertiles of the training rows' values, or those given. Generated images have no settings of a camera to rank."""
    if config.ordinal_edges is not None:
        return dict(config.ordinal_edges)
    if config.kind != "photographs":
        return {}
    counts = merge_counts(list(_each(plan_numbers, partial(count_values, place=place))))
    cuts = {tag: tertile_edges(counts[tag]) for tag in ORDINAL_TAGS}
    return {tag: edges for tag, edges in cuts.items() if edges is not None}


def _pack(place: Place, config: IngestConfig, edges: dict[str, tuple[float, float]]) -> list[Shard]:
    (units,) = _each([None], partial(_cut, place=place, mebibytes=config.shard_mebibytes))
    progress = Progress("packed", len(units), "shards")
    packed = []
    for result in _each(units, partial(pack_shard, place=place, config=config, edges=edges)):
        packed.append(Shard.model_validate(result))
        progress.add(1)
    return sorted(packed, key=lambda shard: (SPLITS.index(shard.split), shard.name))


def _map(verb: str, unit: str, units: Any, function: Callable[[Any], int], total: int) -> None:
    progress = Progress(verb, total, unit)
    for count in _each(units, function):
        progress.add(count)


def _do(units: Any, function: Callable[[Any], Any]) -> None:
    for _ in _each(units, function):
        pass


def _each(units: Any, function: Callable[[Any], Any]) -> Iterator[Any]:
    """``function`` of every unit in a Ray task of its own; results as they come. Both sides travel as JSON."""
    coming = iter(units)
    while span := list(islice(coming, _SPAN)):
        yield from _run(span, function)


def _run(units: list[Any], function: Callable[[Any], Any]) -> Iterator[Any]:
    context = quiet_ray_data()
    context.execution_no_progress_timeout_s = -1  # a slow file system is not ours to judge
    with DataContext.current(context):
        items = [{"json": json.dumps(unit)} for unit in units]
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            partial(_json_task, function=function), batch_size=None, batch_format="pyarrow", num_cpus=1
        )
        tables = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for table in tables:
        for text in table["json"].to_pylist():
            yield json.loads(text)


def _json_task(table: pa.Table, function: Callable[[Any], Any]) -> pa.Table:
    return pa.table({"json": [json.dumps(function(json.loads(text))) for text in table["json"].to_pylist()]})
