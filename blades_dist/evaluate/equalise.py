"""One and the same container for both sides of a test set.

Every crop is brought to one common side, then through one and the same JPEG encoder, and is stored as a lossless PNG
again. What that cannot remove: traces in the pixels of what a file went through before, how a face is framed, what is
shown (docs/testsets.md).
"""

import json
import math
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blades_dist.data.pipeline.place import digest
from blades_dist.data.records import Manifest, read_manifest
from blades_dist.evaluate.equalised_set import Count, shorter_sides, write_set
from blades_dist.files import write_atomically

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
