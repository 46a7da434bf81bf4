"""Rate of ingest's work on one photo against OpenCV's bare decode and resize of the same files, on one core.

python benchmarks/ingest_photo.py            prints the table
python benchmarks/ingest_photo.py --write    also writes benchmarks/results/ingest_photo.md
python benchmarks/ingest_photo.py --quick    few small photographs: does it work

Photographs are simulated once and kept below the temporary folder. Every round runs each variant once, in turn.
"""

import argparse
import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import inputs
import numpy as np

from blades_dist.config import IngestConfig
from blades_dist.data.crops import Outcome, Photo, process_photo
from blades_dist.data.faces import parse_sidecar, sidecar_of
from blades_dist.data.sandbox import PhotoProcess
from blades_dist.data.sources.base import Annotations

RESIZED = 224  # pixels a side
Process = Callable[[Photo, bytes, Annotations], Outcome]


def table(files: list[Path], size: int, rounds: int) -> str:
    """Markdown table of every variant."""
    data = [file.read_bytes() for file in files]
    photos = [
        Photo(file.name, "s", hashlib.sha256(item).hexdigest(), "train") for file, item in zip(files, data, strict=True)
    ]
    given = [Annotations(faces=parse_sidecar(sidecar_of(file).read_bytes())) for file in files]
    config = IngestConfig(source=("-",), output=Path("-"), min_face_px=32)

    def bare() -> None:
        for item in data:
            pixels = cv2.imdecode(np.frombuffer(item, np.uint8), cv2.IMREAD_COLOR)
            cv2.resize(pixels, (RESIZED, RESIZED), interpolation=cv2.INTER_AREA)

    def all_of(process: Process, said: list[Annotations]) -> Callable[[], None]:
        def run() -> None:
            for photo, item, what in zip(photos, data, said, strict=True):
                process(photo, item, what)

        return run

    def own(photo: Photo, item: bytes, what: Annotations) -> Outcome:
        return process_photo(photo, item, what, config)

    with PhotoProcess(config) as child:
        jobs = {
            "OpenCV: imdecode, resize": bare,
            "process_photo, faces given": all_of(own, given),
            "PhotoProcess, faces given": all_of(child.process, given),
            "process_photo, faces located (Haar)": all_of(own, [Annotations()] * len(files)),
            "PhotoProcess, faces located (Haar)": all_of(child.process, [Annotations()] * len(files)),
        }
        times = inputs.in_turn(jobs, rounds, time.perf_counter)
    base = times["OpenCV: imdecode, resize"]
    lines = [
        f"# Ingest of a photo, JPEG of {size} x {size} pixels, one core",
        "",
        f"{rounds} rounds of {len(files)} photographs, wall time; median (20%, 80%). process_photo: sha-256, header "
        "checks, EXIF, decoding, perceptual hash, faces, the crop as PNG; PhotoProcess: the same in the bounded child.",
        "",
        *inputs.header(),
        "",
        "| what | photos/s | ms a photo | rate over OpenCV's |",
        "|---|---|---|---|",
    ]
    for name, seconds in times.items():
        rate, each = (
            inputs.quantiles(len(files) / seconds, "{:.1f}"),
            inputs.quantiles(1e3 * seconds / len(files), "{:.2f}"),
        )
        lines.append(f"| {name} | {rate} | {each} | {inputs.quantiles(base / seconds, '{:.2f}')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--photos", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/ingest_photo.md")
    options = parser.parse_args()
    if options.quick:
        options.size, options.photos, options.rounds = 256, 16, 2
    cv2.setNumThreads(1)
    files = sorted(inputs.photographs(options.photos, options.size).glob("*.jpg"))
    inputs.publish(table(files, options.size, options.rounds), "ingest_photo", options.write)


if __name__ == "__main__":
    main()
