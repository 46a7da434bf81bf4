"""The manifest of a finished ingest, once its counts add up, and what a person is told of it."""

from blades_dist.config import SPLITS, IngestConfig
from blades_dist.data.records import Manifest, Shard
from blades_dist.tasks import ORDINAL_TAGS, TAGS, vocabulary


class IngestError(RuntimeError):
    """The counts of an ingest do not add up: some file was neither written nor quarantined. A bug, not bad input."""


def manifest_of(
    config: IngestConfig,
    entries: int,
    counts: dict[str, dict[str, int]],
    edges: dict[str, tuple[float, float]],
    shards: list[Shard],
) -> Manifest:
    """The manifest of a set of ``entries`` listed items; ``counts`` are those of ``quarantine.write_quarantine``.

    Raises:
        IngestError: the counts do not add up.
    """
    files, faces = counts["files"], counts["faces"]
    if sum(files.values()) != entries:
        raise IngestError(f"{entries} files were listed, but they became {files}")
    rows = {split: sum(shard.rows for shard in shards if shard.split == split) for split in SPLITS}
    if {split: count for split, count in rows.items() if count} != counts["rows"]:
        raise IngestError(f"rows of the photos written: {counts['rows']}; rows of the shards: {rows}")
    if faces["seen"] != sum(rows.values()) + faces["refused"]:
        raise IngestError(f"{faces['seen']} faces seen, but {sum(rows.values())} written, {faces['refused']} refused")
    return Manifest(
        locator=config.locator,
        crop_scale=config.crop_scale,
        min_face_px=config.min_face_px,
        kind=config.kind,
        shards=shards,
        ordinal_edges={tag: edges[tag] for tag in ORDINAL_TAGS if tag in edges},
        vocabularies={tag: list(vocabulary(tag)) for tag in TAGS},
        split_seed=config.split_seed,
        files_seen=entries,
        faces_seen=faces["seen"],
        rows=rows,
        sources=counts["sources"],
        quarantine=counts["reasons"],
    )


def summary(config: IngestConfig, manifest: Manifest) -> list[str]:
    """What was seen and written, in a few lines."""

    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"

    return [
        f"{manifest.files_seen} files, {manifest.faces_seen} faces seen",
        f"rows: {listed(manifest.rows)}",
        f"quarantine: {listed(manifest.quarantine)}",
        *([] if manifest.shards else ["no face could be used; the quarantine says why"]),
        f"written to {config.output}",
    ]
