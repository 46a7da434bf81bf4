"""Step 5: near duplicates across the whole collection."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from blades_dist.config import IngestConfig
from blades_dist.data.duplicates import BANDS, HASH_BYTES, copies, near_pairs
from blades_dist.data.pipeline.workspace import Workspace, write_table
from blades_dist.data.records import read_manifest

_PAIRS = pa.schema([pa.field("a", pa.int64()), pa.field("b", pa.int64())])
# ``position`` counts all outcomes in their order; ``of`` is the path of the photo that stays.
DROPPED = pa.schema([pa.field("position", pa.int64()), pa.field("path", pa.string()), pa.field("of", pa.string())])


def find_pairs(bands: list[int], workspace: Workspace, bits: int) -> int:
    """Writes the near pairs of some bands; returns how many they are. Memory: some 80 bytes a photo."""
    unique = np.unique(_fingerprints(workspace)[1])
    hashes = unique.view(np.uint8).reshape(-1, HASH_BYTES)
    found = np.concatenate([near_pairs(hashes, band, bits) for band in bands])
    found = np.unique(found, axis=0)
    write_table(pa.table([found[:, 0], found[:, 1]], schema=_PAIRS), workspace.table("pairs", bands[0]))
    return len(found)


def band_tasks(photos: int) -> list[list[int]]:
    """Which bands are searched together: all at once when there are few photos."""
    together = BANDS if photos < 50_000 else 1
    return [list(range(first, first + together)) for first in range(0, BANDS, together)]


def drop_near_duplicates(workspace: Workspace, config: IngestConfig) -> int:
    """Writes which photos are dropped as near copies of which others; returns how many they are.

    Of near photos one stays that is in the set that lies at ``config.output`` already, so that photos added later
    never displace it; then the one with the most pixels, then the first by hash.
    """
    if not config.near_duplicate_bits:
        write_table(DROPPED.empty_table(), workspace.table("dropped"))
        return 0
    positions, hashes = _fingerprints(workspace)
    table = ds.dataset(workspace.folder("pairs"), format="parquet").to_table()
    pairs = np.stack([table["a"].to_numpy(), table["b"].to_numpy()], axis=1)
    unique, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    involved = np.zeros(len(unique), bool)
    involved[pairs.ravel()] = True
    chosen = np.flatnonzero((involved | (counts > 1))[inverse])
    table = _photos(workspace, positions[chosen])
    group = inverse[chosen]
    before = pc.is_in(table["sha256"], _present(config)).to_numpy(zero_copy_only=False)
    order = np.lexsort((np.arange(len(chosen)), -table["pixels"].to_numpy(), ~before))
    rank = np.empty(len(chosen), np.int64)
    rank[order] = np.arange(len(chosen))
    # Photos with one and the same hash are one item, its best photo; the rest of them go.
    best: dict[int, int] = {}
    for i in order.tolist():
        best.setdefault(int(group[i]), i)
    ranks = np.full(len(unique), len(chosen), np.int64)
    for item, i in best.items():
        ranks[item] = rank[i]
    near = copies(np.unique(pairs, axis=0), ranks)
    kept = {i: best[near.get(int(group[i]), int(group[i]))] for i in range(len(chosen))}
    gone = [i for i in range(len(chosen)) if kept[i] != i]
    paths = table["path"].to_pylist()
    rows = [{"position": int(positions[chosen[i]]), "path": paths[i], "of": paths[kept[i]]} for i in gone]
    write_table(pa.Table.from_pylist(rows, DROPPED), workspace.table("dropped"))
    return len(rows)


def dropped(workspace: Workspace) -> np.ndarray:
    """Positions, ascending, of the photos that ``drop_near_duplicates`` dropped."""
    return np.sort(pq.read_table(workspace.table("dropped"))["position"].to_numpy())


def _fingerprints(workspace: Workspace) -> tuple[np.ndarray, np.ndarray]:
    """Positions (N,) int64 and hashes (N,) of 32 opaque bytes of the photos that have rows."""
    table = ds.dataset(workspace.folder("outcomes"), format="parquet").to_table(columns=["rows", "fingerprint"])
    usable = pc.and_(pc.greater(table["rows"], 0), pc.is_valid(table["fingerprint"]))
    positions = np.flatnonzero(usable.to_numpy(zero_copy_only=False))
    joined = b"".join(table["fingerprint"].filter(usable).to_pylist())
    return positions, np.frombuffer(joined, f"V{HASH_BYTES}")


def _photos(workspace: Workspace, positions: np.ndarray) -> pa.Table:
    table = ds.dataset(workspace.folder("outcomes"), format="parquet").to_table(columns=["path", "sha256", "pixels"])
    return table.take(positions)


def _present(config: IngestConfig) -> pa.Array:
    """Hashes of the photos in the set that is there already."""
    photos = pa.array([], pa.string())
    try:
        shards = read_manifest(config.output).shards
    except (OSError, ValueError):
        return photos
    for shard in shards:
        try:
            found = pq.read_table(config.output / shard.name, columns=["photo"])["photo"]
        except (OSError, pa.ArrowException):  # a damaged set is about to be replaced
            continue
        photos = pc.unique(pa.concat_arrays([photos, pc.unique(found)]))
    return photos
