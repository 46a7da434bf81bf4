"""The tables of a data report."""

from collections.abc import Iterable, Mapping

from blades_dist.data.records import Manifest
from blades_dist.data.report_counts import Counts
from blades_dist.data.report_plots import UNITS
from blades_dist.report.tables import Table, TableRow
from blades_dist.tasks import ORDINAL_TAGS, TAGS, vocabulary


def faces(manifest: Manifest, counts: Counts) -> Table:
    """Faces of every source, by split."""
    splits = list(manifest.rows)
    rows = [_row(name, (found[split] for split in splits)) for name, found in sorted(counts.sources.items())]
    rows.append(_row("all sources", manifest.rows.values(), total=True))
    return Table("Faces of every source, by split", (*splits, "all"), tuple(rows))


def tags(manifest: Manifest, counts: Counts) -> list[Table]:
    """Of each tag the faces of every value, by split."""
    splits = [split for split, rows in manifest.rows.items() if rows]
    tables = []
    for tag in TAGS:
        columns = [counts.labels[tag][split].tolist() for split in splits]
        names = [*vocabulary(tag), "absent"]
        rows = [_row(name, (column[i] for column in columns)) for i, name in enumerate(names)]
        tables.append(Table(tag, (*splits, "all"), tuple(rows)))
    return tables


def levels(manifest: Manifest, counts: Counts) -> Table:
    """What is low, medium and high."""
    rows = []
    for tag in ORDINAL_TAGS:
        raw, edges = counts.raw[tag], manifest.ordinal_edges.get(tag)
        extent = [f"{raw.low:g}", f"{raw.high:g}"] if raw.n else ["none", "none"]
        cuts = [f"{edges[0]:g}", f"{edges[1]:g}"] if edges else ["none", "none"]
        rows.append(TableRow(tag, (UNITS[tag], raw.n, *extent, *cuts)))
    columns = ("unit", "faces", "smallest", "largest", "first edge", "second edge")
    return Table("Low is up to the first edge, medium up to the second, high above", columns, tuple(rows))


def tally(title: str, column: str, found: Mapping[str, int]) -> Table:
    """Counts by name, the largest first."""
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return Table(title, (column,), tuple(TableRow(name, (count,)) for name, count in ranked))


def shards(manifest: Manifest) -> Table:
    """The files."""
    rows = [TableRow(one.name, (one.split, one.rows, len(one.row_groups), one.sha256)) for one in manifest.shards]
    return Table("Shards", ("split", "rows", "row groups", "sha-256"), tuple(rows))


def _row(name: str, found: Iterable[int], total: bool = False) -> TableRow:
    cells = tuple(found)
    return TableRow(name, (*cells, sum(cells)), total=total)
