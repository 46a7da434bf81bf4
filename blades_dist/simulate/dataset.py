"""The camera simulator: photographs with true EXIF, and generated faces to evaluate detectors on.

    python -m blades_dist.simulate.dataset OUT --photos 2000 --generated 200 --seed 7

writes ``OUT/photographs`` and ``OUT/generated/<family>``. Every image depends on (seed, index) alone: neither the
number of processes nor the order matters. These are simulated pictures: results on them say that the machinery
works, not how well it detects any real generator. docs/simulator.md tells what is modelled.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from blades_dist.progress import OnProgress, ProgressLine
from blades_dist.simulate.exif_out import encode, exif_bytes
from blades_dist.simulate.generators import FAMILIES
from blades_dist.simulate.pipeline import Shot, shoot, without_margin

VERSION = 1  # of the simulator: a change of any pixel raises it
SMALLEST, LARGEST = 64, 2048
_PHOTOGRAPH, _GENERATED = 1, 2  # random streams: no scene is shared between them
_CHUNK = 64


@dataclass(frozen=True)
class SimulatedImage:
    """A JPEG file, the face's landmarks (5 pairs: eye, eye, nose tip, mouth corner, mouth corner; left in the image
    first) and its box (x, y, width, height), pixels. ``family`` is None for photographs."""

    jpeg: bytes
    landmarks: tuple[tuple[float, float], ...]
    box: tuple[float, float, float, float]
    family: str | None = None

    @property
    def sidecar(self) -> dict[str, Any]:
        """What the file beside the image says, in the format that ingest reads."""
        face = {"box": [round(v, 2) for v in self.box], "landmarks": [[round(v, 2) for v in p] for p in self.landmarks]}
        return {"faces": [face]}


def photograph(index: int, seed: int, size: int = 128) -> SimulatedImage:
    """A face photographed by a simulated camera, with the camera's settings in EXIF.

    Args:
        index: which picture, 0 or more.
        seed: of the whole collection, 0 or more.
        size: side in pixels, 64 to 2048.

    Raises:
        ValueError: for values outside these ranges.
    """
    _check(index=index, seed=seed, size=size)
    shot = shoot(np.random.default_rng([seed, _PHOTOGRAPH, index]), size)
    return _finished(shot, shot.pixels, exif_bytes(shot.settings.exif), None)


def generated(family: str, index: int, seed: int, size: int = 128) -> SimulatedImage:
    """A face as a generator of the given family would make it: no EXIF, else a container like a photograph's.

    Raises:
        ValueError: for an unknown family, and as :func:`photograph`.
    """
    _check(index=index, seed=seed, size=size)
    _check_families([family])
    rng = np.random.default_rng([seed, _GENERATED, list(FAMILIES).index(family), index])
    shot = shoot(rng, size)
    return _finished(shot, without_margin(FAMILIES[family](shot.wide, rng)), None, family)


def write_photographs(
    folder: Path, count: int, *, seed: int, size: int = 128, processes: int = 1, progress: OnProgress | None = None
) -> None:
    """Writes ``count`` photographs and their sidecars into ``folder``; leaves alone what is there already.

    Args:
        folder: made if missing.
        count: number of photographs, 0 or more.
        seed, size: as for :func:`photograph`.
        processes: workers, 1 or more; the files do not depend on it.
        progress: called with (done, all) from time to time.

    Raises:
        ValueError: for values out of range, or if the folder holds pictures made with other parameters.
    """
    _write(folder, None, count, seed=seed, size=size, processes=processes, progress=progress)


def write_generated(
    folder: Path,
    families: Sequence[str],
    count_per_family: int,
    *,
    seed: int,
    size: int = 128,
    processes: int = 1,
    progress: OnProgress | None = None,
) -> None:
    """Writes ``count_per_family`` images of every family into ``folder/<family>``; else as write_photographs."""
    _check_families(families)
    for number, family in enumerate(families):

        def overall(done: int, count: int, before: int = number) -> None:
            if progress is not None:
                progress(before * count + done, len(families) * count)

        _write(folder / family, family, count_per_family, seed=seed, size=size, processes=processes, progress=overall)


def _check(**values: int) -> None:
    limits = {"size": (SMALLEST, LARGEST), "processes": (1, 4096)}
    for name, value in values.items():
        low, high = limits.get(name, (0, 2**63))
        if not low <= value <= high:
            allowed = f"{low} to {high}" if name in limits else "0 or more"
            raise ValueError(f"{name} is {value}; allowed is {allowed}")


def _check_families(families: Sequence[str]) -> None:
    for family in families:
        if family not in FAMILIES:
            raise ValueError(f"unknown generator family {family!r}; there are {', '.join(FAMILIES)}")


def _finished(shot: Shot, pixels: Any, exif: bytes | None, family: str | None) -> SimulatedImage:
    rounded = np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)
    landmarks = tuple((float(x), float(y)) for x, y in shot.landmarks)
    return SimulatedImage(encode(rounded, shot.container, exif), landmarks, shot.box, family)


def _write(
    folder: Path, family: str | None, count: int, *, seed: int, size: int, processes: int, progress: OnProgress | None
) -> None:
    _check(count=count, seed=seed, size=size, processes=processes)
    parameters = {"version": VERSION, "kind": family or "photographs", "count": count, "seed": seed, "size": size}
    marker = folder / "simulation.json"
    if marker.exists():
        found = json.loads(marker.read_text())
        if found == parameters:
            return
        if any(found.get(key) != parameters[key] for key in ("version", "kind", "seed", "size")):
            raise ValueError(f"{folder} holds pictures made with {found}, not {parameters}; empty it or name another")
        if found["count"] > count:
            raise ValueError(f"{folder} holds {found['count']} pictures, more than the {count} asked for; empty it")
    folder.mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(count) if not _paths(folder, i)[1].exists() or not _paths(folder, i)[0].exists()]
    chunks = [(folder, family, missing[k : k + _CHUNK], seed, size) for k in range(0, len(missing), _CHUNK)]
    done = count - len(missing)
    if processes == 1 or len(chunks) < 2:
        results = map(_write_chunk, chunks)
        _count(results, done, count, progress)
    else:
        # Spawned, not forked: OpenCV's and the caller's threads do not survive a fork.
        with ProcessPoolExecutor(min(processes, len(chunks)), get_context("spawn"), _single_thread) as pool:
            _count(pool.map(_write_chunk, chunks), done, count, progress)
    _replace(marker, json.dumps(parameters, indent=1).encode())


def _count(results: Any, done: int, count: int, progress: OnProgress | None) -> None:
    for made in results:
        done += made
        if progress is not None:
            progress(done, count)


def _single_thread() -> None:
    cv2.setNumThreads(1)


def _paths(folder: Path, index: int) -> tuple[Path, Path]:
    return folder / f"{index:06d}.jpg", folder / f"{index:06d}.faces.json"


def _write_chunk(chunk: tuple[Path, str | None, list[int], int, int]) -> int:
    folder, family, indices, seed, size = chunk
    for index in indices:
        image = photograph(index, seed, size) if family is None else generated(family, index, seed, size)
        jpeg, sidecar = _paths(folder, index)
        _replace(jpeg, image.jpeg)
        _replace(sidecar, json.dumps(image.sidecar).encode())
    return len(indices)


def _replace(path: Path, data: bytes) -> None:
    """Writes a file so that it is either whole or absent."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_bytes(data)
    partial.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: photographs and generated faces into one folder."""
    parser = argparse.ArgumentParser(prog="python -m blades_dist.simulate.dataset", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", type=int, default=2000, help="number of photographs")
    parser.add_argument("--generated", type=int, default=200, help="images per family")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), help=f"of {', '.join(FAMILIES)}")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--size", type=int, default=128, help="side in pixels")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(arguments)
    common = {"seed": options.seed, "size": options.size, "processes": options.processes}
    try:
        said = ProgressLine("simulated", "photographs")
        write_photographs(options.out / "photographs", options.photos, progress=said, **common)
        said = ProgressLine("simulated", "generated faces")
        write_generated(options.out / "generated", options.families, options.generated, progress=said, **common)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
