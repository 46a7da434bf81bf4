"""A collection of photographs to Parquet shards, through Ray Data. Only numbers and names of files below the output
folder go through the driver: its memory does not grow with the collection.

1. List: every item of the sources. 2. Hash: sha-256 of each; exact duplicates go. 3. Plan: photos in the order of
their hashes. 4. Crop: photos, a part of 64 at a time, become rows with raw EXIF values and an outcome each.
5. Near duplicates across the collection go. 6. Bin edges: tertiles of the training rows. 7. Shards: their
bounds, then each. 8. The quarantine, and counts that must add up.

Stored by hash, any stretch of a shard is a fair sample of the collection, and nothing depends on the number of tasks.
Steps 2, 4 and 7 write files named by what they were made of, so an ingest that was killed goes on where it was.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext

from blades_dist.config import SPLITS, IngestConfig
from blades_dist.data.exif import tertile_edges
from blades_dist.data.locate import check_locator
from blades_dist.data.pipeline.cropping import crop_part, gather_outcomes
from blades_dist.data.pipeline.listing import hash_file, list_collection
from blades_dist.data.pipeline.near_duplicates import band_tasks, drop_near_duplicates, find_pairs
from blades_dist.data.pipeline.packing import build_shard, count_values, merge_counts, plan_shards
from blades_dist.data.pipeline.planning import plan_count, plan_photos
from blades_dist.data.pipeline.quarantine import quarantine_file, write_quarantine
from blades_dist.data.pipeline.summary import manifest_of, summary
from blades_dist.data.pipeline.workspace import Workspace, config_digest, digest
from blades_dist.data.ray_data import quiet_ray_data
from blades_dist.data.records import Manifest, Shard, read_manifest
from blades_dist.data.shards import STATE, publish, tidy
from blades_dist.data.sources.base import SourceError
from blades_dist.data.sources.factory import settled
from blades_dist.progress import ProgressLine, say_now
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
    workspace = _workspace(config)
    listed = _one(list_collection, workspace=workspace, config=config)
    fingerprint = digest(config_digest(config), listed["digest"])
    finished = _finished(config, fingerprint)
    if finished is not None:
        tidy(config.output, finished)
        shutil.rmtree(workspace.building, ignore_errors=True)
        _say(f"{config.output} is up to date with its source ({listed['entries']} files): nothing to do")
        return finished
    hashed = _each(hash_file, ((n,) for n in range(listed["files"])), workspace=workspace, config=config)
    _follow(hashed, "hashed", listed["entries"], "files")
    plans = _plans(workspace, listed["entries"])
    photos = sum(plan["photos"] for plan in plans)
    parts = ((plan["number"], group) for plan in plans for group in range(plan["groups"]))
    _follow(_each(crop_part, parts, workspace=workspace, config=config), "cropped", photos, "photos")
    _wait(_each(gather_outcomes, ((plan["number"],) for plan in plans), workspace=workspace, config=config))
    if config.near_duplicate_bits:
        bands = ((bands,) for bands in band_tasks(photos))
        _wait(_each(find_pairs, bands, workspace=workspace, bits=config.near_duplicate_bits))
    _one(drop_near_duplicates, workspace=workspace, config=config)
    edges = _edges(len(plans), workspace, config)
    shards = _build_shards(workspace, config, edges)
    counts = _one(write_quarantine, workspace=workspace)
    manifest = manifest_of(config, listed["entries"], counts, edges, shards)
    state = {"fingerprint": fingerprint, "manifest": manifest.digest()}
    publish(config.output, manifest, quarantine_file(workspace), json.dumps(state) + "\n")
    shutil.rmtree(workspace.building, ignore_errors=True)
    for line in summary(config, manifest):
        _say(line)
    return manifest


def _say(text: str) -> None:
    say_now(f"ingest: {text}")


def _workspace(config: IngestConfig) -> Workspace:
    building = config.output / _BUILDING
    try:
        building.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(f"output: cannot write to {config.output}: {error.strerror}") from None
    for old in building.glob("run-*"):  # of a run that was killed; what is worth keeping lies in the cache
        shutil.rmtree(old, ignore_errors=True)
    return Workspace.fresh(building.resolve())


def _finished(config: IngestConfig, fingerprint: str) -> Manifest | None:
    try:
        state = json.loads((config.output / STATE).read_text())
        manifest = read_manifest(config.output)
    except (OSError, ValueError):
        return None
    same = isinstance(state, dict) and state == {"fingerprint": fingerprint, "manifest": manifest.digest()}
    return manifest if same and all((config.output / shard.name).is_file() for shard in manifest.shards) else None


def _plans(workspace: Workspace, entries: int) -> list[dict[str, Any]]:
    """What ``plan_photos`` returns of every plan, in their order."""
    of = plan_count(entries)
    return sorted(
        _each(plan_photos, ((n, of) for n in range(of)), workspace=workspace), key=lambda plan: plan["number"]
    )


def _edges(plans: int, workspace: Workspace, config: IngestConfig) -> dict[str, tuple[float, float]]:
    """Tertiles of the training rows' values, or those given. Generated images have no settings of a camera to rank."""
    if config.ordinal_edges is not None:
        return dict(config.ordinal_edges)
    if config.kind != "photographs":
        return {}
    counts = merge_counts(list(_each(count_values, ((n,) for n in range(plans)), workspace=workspace)))
    cuts = {tag: tertile_edges(counts[tag]) for tag in ORDINAL_TAGS}
    return {tag: edges for tag, edges in cuts.items() if edges is not None}


def _build_shards(workspace: Workspace, config: IngestConfig, edges: dict[str, tuple[float, float]]) -> list[Shard]:
    bounds = _one(plan_shards, workspace=workspace, mebibytes=config.shard_mebibytes)
    progress, built = ProgressLine("packed", "shards", _say), []
    for shard in _each(build_shard, ((one,) for one in bounds), workspace=workspace, config=config, edges=edges):
        built.append(Shard.model_validate(shard))
        progress(len(built), len(bounds))
    return sorted(built, key=lambda shard: (SPLITS.index(shard.split), shard.name))


def _follow(counts: Iterator[int], verb: str, total: int, unit: str) -> None:
    progress, done = ProgressLine(verb, unit, _say), 0
    for count in counts:
        done += count
        progress(done, total)


def _wait(results: Iterator[Any]) -> None:
    for _ in results:
        pass


def _one(step: Callable[..., Any], **shared: Any) -> Any:
    """``step(**shared)`` in a Ray task; raises as ``_each``."""
    (result,) = _each(step, [()], **shared)
    return result


def _each(step: Callable[..., Any], units: Iterable[Sequence[Any]], **shared: Any) -> Iterator[Any]:
    """``step(*unit, **shared)`` of every unit in a Ray task of its own; results as they come. Units and results travel
    as JSON.

    Raises:
        SourceError: as the step.
    """
    coming = iter(units)
    while span := list(islice(coming, _SPAN)):
        for text in _run(partial(_json_task, step=partial(step, **shared)), [json.dumps(unit) for unit in span]):
            answer = json.loads(text)
            if "source_error" in answer:
                raise SourceError(answer["source_error"])
            yield answer["result"]


def _run(task: Callable[[pa.Table], pa.Table], units: list[str]) -> Iterator[str]:
    """A Ray Data pipeline with a task for every unit."""
    context = quiet_ray_data()
    context.execution_no_progress_timeout_s = -1  # a slow file system is not ours to judge
    with DataContext.current(context):
        items = [{"json": unit} for unit in units]
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            task, batch_size=None, batch_format="pyarrow", num_cpus=1
        )
        tables = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for table in tables:
        yield from table["json"].to_pylist()


def _json_task(table: pa.Table, step: Callable[..., Any]) -> pa.Table:
    return pa.table({"json": [json.dumps(_answer(step, json.loads(unit))) for unit in table["json"].to_pylist()]})


def _answer(step: Callable[..., Any], unit: Sequence[Any]) -> dict[str, Any]:
    """Ray would wrap an error; one that is for the user travels as an answer."""
    try:
        return {"result": step(*unit)}
    except SourceError as error:
        return {"source_error": str(error)}
