"""From a path or URI and the ingest's configuration to the source that reads it. No Ray here."""

from pathlib import PurePosixPath

from blades_dist.config import IngestConfig
from blades_dist.data.records import MANIFEST
from blades_dist.data.sources import fdf, ffhq
from blades_dist.data.sources.base import Source, SourceError
from blades_dist.data.sources.fdf import FdfSource
from blades_dist.data.sources.ffhq import FfhqSource
from blades_dist.data.sources.folder import LISTED_SUFFIXES, FolderSource
from blades_dist.data.sources.listed import ListSource
from blades_dist.data.sources.shard_set import ShardSource
from blades_dist.data.sources.storage import absolute, open_storage
from blades_dist.data.sources.webdataset import WebDatasetSource


def open_source(uri: str, config: IngestConfig) -> Source:
    """The source of one path or URI; with ``config.format`` auto its root is listed to find out which.

    Raises:
        SourceError: there is nothing, or it cannot be told what it is.
    """
    form = detect(uri) if config.format == "auto" else config.format
    _check(form, config)
    if form == "fdf":
        return FdfSource(uri, config.metadata, config.labels)
    if form == "ffhq":
        return FfhqSource(uri, config.metadata)
    if form == "webdataset":
        return WebDatasetSource(uri)
    if form == "shards":
        return ShardSource(uri, config.kind)
    if form == "list":
        return ListSource(uri, config.kind)
    return FolderSource(uri)


def settled(config: IngestConfig) -> IngestConfig:
    """The configuration for workers: paths absolute, and the format found out once instead of in every task.

    Raises:
        SourceError: as ``open_source``.
    """
    sources = tuple(absolute(uri) for uri in config.source)
    forms = {detect(uri) for uri in sources} if config.format == "auto" else {config.format}
    beside = {name: getattr(config, name) for name in ("metadata", "labels")}
    return config.model_copy(
        update={"source": sources, "format": forms.pop() if len(forms) == 1 else "auto"}
        | {name: value and absolute(value) for name, value in beside.items()}
    )


def detect(uri: str) -> str:
    """Format of a path or URI, a value of ``IngestConfig.format``: by its name, else by what its top folder holds.

    Raises:
        SourceError: there is no such folder, or it holds both tar files and images.
    """
    name = uri.partition("?")[0]
    if name.endswith(".tar"):
        return "webdataset"
    if name.endswith(".csv"):
        return "list"
    top = open_storage(uri).top()
    if MANIFEST in top.files and any(name.endswith(".parquet") for name in top.files):
        return "shards"
    if fdf.METADATA in top.files:
        return "fdf"
    if any(ffhq.METADATA.fullmatch(name) for name in top.files):
        return "ffhq"
    suffixes = {PurePosixPath(name).suffix.lower() for name in top.files}
    if ".tar" not in suffixes:
        return "folder"
    if suffixes & set(LISTED_SUFFIXES):
        raise SourceError(f"source: {uri} holds both tar files and images; say format=webdataset or format=folder")
    return "webdataset"


def _check(form: str, config: IngestConfig) -> None:
    if config.metadata is not None and form not in ("fdf", "ffhq"):
        raise SourceError(f"metadata: format {form} has no such file; it is for formats fdf and ffhq")
    if config.labels is not None and form != "fdf":
        raise SourceError(f"labels: format {form} has no such file; it is for format fdf")
