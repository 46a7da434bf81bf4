"""Rate of the camera simulator on one core: scene, camera, JPEG, EXIF and files, everything included.

python benchmarks/dataset.py            prints the table
python benchmarks/dataset.py --write    also writes benchmarks/results/dataset.md
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import PIL

from blades_dist.simulate import dataset

ROUNDS, PER_ROUND = 15, 40


def rates(write: Callable[[Path, int, int], None]) -> np.ndarray:
    """Images per second of CPU time, and of wall time, in each of ROUNDS rounds (2, ROUNDS)."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        write(Path(name) / "warm", 0, PER_ROUND)
        for number in range(ROUNDS):
            wall, busy = time.perf_counter(), time.process_time()
            write(Path(name) / str(number), number + 1, PER_ROUND)
            found.append((PER_ROUND / (time.process_time() - busy), PER_ROUND / (time.perf_counter() - wall)))
    return np.array(found).T


def table(size: int) -> str:
    """Markdown table: median and 20/80 quantiles for photographs and every family."""

    def photographs(folder: Path, seed: int, count: int) -> None:
        dataset.write_photographs(folder, count, seed=seed, size=size)

    def of(family: str) -> Callable[[Path, int, int], None]:
        return lambda folder, seed, count: dataset.write_generated(folder, [family], count, seed=seed, size=size)

    jobs = {"photographs": photographs} | {family: of(family) for family in dataset.FAMILIES}
    lines = [
        f"# Camera simulator, {size} x {size} pixels, one process, one thread",
        "",
        f"{ROUNDS} rounds of {PER_ROUND} images each: scene, camera, JPEG, EXIF, sidecar and files.",
        "",
        f"- device: {_device()}, load {os.getloadavg()[0]:.1f} when measured (others may have been at work)",
        f"- Python {platform.python_version()}, NumPy {np.__version__}, OpenCV {cv2.__version__}, "
        f"Pillow {PIL.__version__}, simulator version {dataset.VERSION}",
        "",
        "| images | a second of CPU time, median (20%, 80%) | a second of wall time, median (20%, 80%) |",
        "|---|---|---|",
    ]
    for name, write in jobs.items():
        cells = [f"{np.median(r):.0f} ({np.quantile(r, 0.2):.0f}, {np.quantile(r, 0.8):.0f})" for r in rates(write)]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def _device() -> str:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/dataset.md")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    text = table(options.size)
    print(text)
    if options.write:
        target = Path(__file__).parent / "results" / "dataset.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)


if __name__ == "__main__":
    main()
