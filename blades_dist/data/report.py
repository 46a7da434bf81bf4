"""What a shard set holds and what was left out of it, as one self-contained HTML page. No Ray here."""

from collections.abc import Sequence
from pathlib import Path

from blades_dist.data import report_tables as tables
from blades_dist.data.records import read_manifest
from blades_dist.data.report_counts import count
from blades_dist.data.report_pictures import Originals, contact_sheet, examples, near_duplicates, refused
from blades_dist.data.report_plots import plots
from blades_dist.files import write_atomically
from blades_dist.report.page import render

REPORT = "report.html"


def write_report(folder: Path, target: Path | None = None, sources: Sequence[str] = ()) -> Path:
    """Writes the page about the shard set in ``folder`` to ``target`` (None: ``report.html`` beside it); returns where.

    ``sources`` are those that were ingested: files in quarantine are shown where they lie in local folders among them.
    The same set and files make the same page. Memory is bounded: rows are counted, pictures are samples.

    Raises:
        FileNotFoundError: there is no manifest, or no quarantine.
        ValueError: the manifest is not one of this version, or a shard is damaged.
    """
    manifest = read_manifest(folder)
    counts, found = count(folder, manifest), refused(folder)
    with Originals(sources) as originals:
        reasons, pairs = examples(found, originals), near_duplicates(found, originals)
    text = render(
        "blades_dist.data",
        "data_report.html.j2",
        manifest=manifest,
        digest=manifest.digest(),
        faces=tables.faces(manifest, counts),
        codecs=tables.tally("Containers that the photos came in", "faces", counts.codecs),
        tags=tables.tags(manifest, counts),
        levels=tables.levels(manifest, counts),
        quarantine=tables.tally("Files or faces that were not used, by reason", "count", manifest.quarantine),
        shards=tables.shards(manifest),
        refused=found.counts,
        reasons=reasons,
        pairs=pairs,
        sheets={split: contact_sheet(folder, manifest, split) for split, rows in manifest.rows.items() if rows},
        plots=plots(counts, manifest),
    )
    target = target or folder / REPORT
    write_atomically(target, text)
    return target
