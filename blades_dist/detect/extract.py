"""Features of shard splits as a Ray Data job: a pool of actors that hold the encoder, and files that are kept.

A file holds the features of some 512 faces of one shard under one re-encoding. It is named by the encoder's digest and
by the shard's, so what was computed once is computed again by no other job, and not after a kill.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext

from blades_dist.arithmetic import cuda
from blades_dist.config import ExtractConfig
from blades_dist.data.pipeline.workspace import write_table
from blades_dist.data.ray_data import quiet_ray_data
from blades_dist.data.records import label_column, read_manifest
from blades_dist.detect.features import FeatureSet, encode, encode_prepared, face_seed, stored_faces
from blades_dist.models.encoder_info import DESCRIPTION, read_info
from blades_dist.models.export import FrozenEncoder, encoder_digest, load_encoder
from blades_dist.models.resize import resized
from blades_dist.perturb import apply, check_spec
from blades_dist.raylocal import cards, require
from blades_dist.tasks import TAGS

ROWS_PER_FILE = 512  # some seconds of work for a large encoder: what a kill can lose of one actor
_ROWS_PER_ACTOR = 1024  # an actor takes seconds to start, which fewer rows do not repay
_KEPT = ".features"  # beside the shards, where the configuration names no other place
_TROUBLE = (OSError, ValueError, pa.ArrowException, RuntimeError)  # that a unit may have; the driver is told
_ABOUT = ("id", "source", "path", *(label_column(tag) for tag in TAGS))


@dataclass(frozen=True)
class Request:
    """Features of the faces of ``split`` of ``shards`` under the encoder of folder ``encoder``.

    ``view`` is a ``perturb`` spec that every face goes through first, "" for none; ``limit`` takes the first faces in
    stored order, which are a fair sample since rows are stored by hash.
    """

    encoder: Path
    shards: Path
    split: str
    view: str = ""
    limit: int | None = None


@dataclass(frozen=True)
class _Unit:
    """Row groups ``first`` to ``last`` (not included) of a shard: one task, one file."""

    encoder: str
    shard: str
    first: int
    last: int
    view: str
    rows: int
    target: str


def extract(requests: Sequence[Request], config: ExtractConfig, say: Callable[[str], None] = print) -> list[FeatureSet]:
    """A feature set a request, in order. Needs a connection to Ray, unless everything is there already.

    Every node must see shards, encoders and the cache under the same paths.

    Raises:
        ConfigError: ``config.gpu`` on a cluster that has none.
        FileNotFoundError: no shard set or encoder where a request says.
        ValueError: an empty split, an unknown view, a damaged shard, or features that are not finite.
    """
    planned = compute(requests, config, say)
    return [_read(request, units) for request, units in zip(requests, planned, strict=True)]


def compute(
    requests: Sequence[Request], config: ExtractConfig, say: Callable[[str], None] = print
) -> list[list["_Unit"]]:
    """Sees to it that the files of all requests are there, without reading them; see ``extract``."""
    for request in requests:
        check_spec(request.view)
    digests = {folder: encoder_digest(folder) for folder in {request.encoder for request in requests}}
    planned = [_plan(request, digests[request.encoder], config) for request in requests]
    missing = {unit.target: unit for units in planned for unit in units if not Path(unit.target).is_file()}
    if missing:
        _compute(list(missing.values()), config, say)
    return planned


def _plan(request: Request, encoder: str, config: ExtractConfig) -> list[_Unit]:
    folder = request.shards.resolve()
    kept = (config.cache or folder / _KEPT).resolve() / encoder[:16] / (request.view or "as-stored")
    units, taken = [], 0
    for shard in read_manifest(folder).split(request.split):
        first = rows = 0
        for last, size in enumerate(shard.row_groups, 1):
            rows += size
            if rows < ROWS_PER_FILE and last < len(shard.row_groups):
                continue
            if request.limit is None or taken < request.limit:
                target = kept / f"{shard.sha256[:16]}-{first}-{last}.parquet"
                source = str(folder / shard.name)
                units.append(
                    _Unit(str(request.encoder.resolve()), source, first, last, request.view, rows, str(target))
                )
            taken += rows
            first, rows = last, 0
    return units


def _compute(units: list[_Unit], config: ExtractConfig, say: Callable[[str], None]) -> None:
    """All files that are not there yet, in one pipeline: where the encoder runs on GPUs, CPUs decode for it."""
    if config.gpu:
        require_gpu("extract.gpu", config.gpu)
    context = quiet_ray_data()
    context.execution_no_progress_timeout_s = -1  # a slow encoder is not ours to judge
    total, done, told = sum(unit.rows for unit in units), 0, -1
    with DataContext.current(context):
        items = [{"json": json.dumps(asdict(unit))} for unit in units]
        dataset = ray.data.from_items(items, override_num_blocks=len(items))
        if config.gpu:
            dataset = dataset.map_batches(_decode, batch_size=None, batch_format="pyarrow", num_cpus=1)
        dataset = dataset.map_batches(
            _Extractor,
            fn_constructor_kwargs={"batch_size": config.batch_size, "gpu": bool(config.gpu)},
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(-(-total // _ROWS_PER_ACTOR), _actors(config))),
            num_cpus=0 if config.gpu else 1,  # whoever waits for a card leaves the cores to those who decode for it
            num_gpus=config.gpu,
        )
        tables = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for table in tables:
        for row in table.to_pylist():
            if row["error"]:
                raise ValueError(row["error"])
            done += row["rows"]
        if 10 * done // total > told:
            told = 10 * done // total
            say(f"features of {done} of {total} faces")


def _actors(config: ExtractConfig) -> int:
    if config.actors is not None:
        return config.actors
    there = ray.cluster_resources()
    if config.gpu:
        return int(there["GPU"]) * int(1 / config.gpu + 1e-9)
    return max(1, int(there.get("CPU", 1)))


def require_gpu(key: str, share: float) -> None:
    """Whether the cluster has a GPU at all, of which ``key`` asks for a share.

    Raises:
        ConfigError: it has none.
    """
    remedy = f"run on a cluster with one, or set {key}=false to compute features on CPUs"
    require(key, {"GPU": cards(1, share)}, "computing features there needs", remedy)


def _decode(table: pa.Table) -> pa.Table:
    """A task: units in, the same with the crops of each as the encoder takes them, or with what is wrong."""
    cv2.setNumThreads(1)
    return pa.Table.from_pylist([_decoded(text) for text in table["json"].to_pylist()], _DECODED)


_DECODED = pa.schema({"json": pa.string(), "crops": pa.large_binary(), "type": pa.string(), "error": pa.string()})


def _decoded(text: str) -> dict[str, Any]:
    unit = _Unit(**json.loads(text))
    try:
        info = read_info(Path(unit.encoder) / DESCRIPTION)
        crops = np.stack([resized(pixels, info.image_size, info.resize) for pixels in _faces(unit)])
    except _TROUBLE as error:
        return {"json": text, "crops": b"", "type": "", "error": f"{unit.shard}: {error}"}
    return {"json": text, "crops": crops.data.cast("B"), "type": crops.dtype.str, "error": ""}


class _Extractor:
    """An actor: units in, with their decoded crops or without, numbers of rows out; the features go into files."""

    def __init__(self, batch_size: int, gpu: bool) -> None:
        self._batch_size, self._device = batch_size, cuda() if gpu else torch.device("cpu")
        torch.set_num_threads(1)  # as many actors as cores
        cv2.setNumThreads(1)

    def __call__(self, table: pa.Table) -> pa.Table:
        done = [self._unit(table, i) for i in range(len(table))]
        return pa.Table.from_pylist(done, pa.schema({"rows": pa.int64(), "error": pa.string()}))

    def _unit(self, table: pa.Table, i: int) -> dict[str, Any]:
        unit = _Unit(**json.loads(table["json"][i].as_py()))
        try:
            encoder = _encoder(unit.encoder, self._device)
            if "crops" in table.column_names:
                if error := table["error"][i].as_py():
                    return {"rows": 0, "error": error}
                features = encode_prepared(encoder, _crops(table, i, encoder.info.image_size), self._batch_size)
            else:
                features = encode(encoder, _faces(unit), self._batch_size)
        except _TROUBLE as error:
            return {"rows": 0, "error": f"{unit.shard}: {error}"}
        if not np.isfinite(features).all():
            return {"rows": 0, "error": f"{unit.shard}: the encoder {unit.encoder} gives features that are not finite"}
        column = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
        write_table(pa.table({"features": column}), Path(unit.target))
        return {"rows": len(features), "error": ""}


def _faces(unit: _Unit) -> Iterator[np.ndarray]:
    for name, pixels in stored_faces(Path(unit.shard), unit.first, unit.last):
        yield apply(unit.view, pixels, face_seed(name)) if unit.view else pixels


def _crops(table: pa.Table, i: int, size: int) -> np.ndarray:
    return np.frombuffer(table["crops"][i].as_buffer(), table["type"][i].as_py()).reshape(-1, 3, size, size)


@lru_cache(maxsize=4)
def _encoder(folder: str, device: torch.device) -> FrozenEncoder:
    return load_encoder(Path(folder)).to(device)


def _read(request: Request, units: Sequence[_Unit]) -> FeatureSet:
    """What the files of a request hold, with what the shards say of the faces."""
    features, about = [], []
    for unit in units:
        with pq.ParquetFile(unit.shard) as file:
            about.append(file.read_row_groups(range(unit.first, unit.last), columns=list(_ABOUT), use_threads=False))
        column = pq.read_table(unit.target, use_threads=False)["features"].combine_chunks()
        rows = column.flatten().to_numpy().reshape(len(column), -1)
        if len(rows) != unit.rows:
            raise ValueError(f"{unit.target} holds {len(rows)} faces, not {unit.rows}: remove it and run again")
        features.append(rows)
    table = pa.concat_tables(about).slice(0, request.limit)
    labels = np.stack([table[label_column(tag)].to_numpy().astype(np.int64) for tag in TAGS], axis=1)
    ids, sources, paths = (table[name].to_pylist() for name in ("id", "source", "path"))
    return FeatureSet(np.concatenate(features)[: len(table)], ids, sources, paths, labels)
