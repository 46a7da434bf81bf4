"""Ingest of a large collection: time, rate, and memory of the driver and of the workers.

python benchmarks/ingest.py --photographs 100000 --write     simulates them first (about 10 minutes on 2 cores)
python benchmarks/ingest.py --source DIR --write             a folder that is there; a tenth of it is ingested, too

The job runs twice, as a user runs it, in a process of its own with a local Ray: on a tenth of the collection and on all
of it. Resident memory is sampled twice a second. Writes benchmarks/results/ingest.md.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray

from blades_dist.data.faces import sidecar_of
from blades_dist.data.records import read_manifest
from blades_dist.data.sources.folder import image_files
from blades_dist.simulate.dataset import write_photographs

JOB = Path(__file__).parents[1] / "jobs" / "ingest.py"
MEBIBYTE = 2**20


@dataclass
class Measured:
    """Seconds, and the largest resident MiB of the job's own process, of any worker or decoder, and of them all."""

    files: int
    rows: int
    seconds: float
    driver: float
    worker: float
    together: float


def run(source: Path, output: Path) -> Measured:
    values = [f"source={source}", f"output={output}", "min_face_px=48"]
    begin = time.monotonic()
    job = subprocess.Popen([sys.executable, str(JOB), *values])
    driver = worker = together = 0.0
    while job.poll() is None:
        family = resident(job.pid)
        driver = max(driver, family.pop(job.pid, 0.0))
        worker = max([worker, *family.values()])
        together = max(together, sum(family.values()) + driver)
        time.sleep(0.5)
    if job.returncode:
        raise SystemExit(f"the ingest failed with status {job.returncode}")
    seconds = time.monotonic() - begin
    manifest = read_manifest(output)
    return Measured(manifest.files_seen, sum(manifest.rows.values()), seconds, driver, worker, together)


def resident(pid: int) -> dict[int, float]:
    """MiB of a process, and of Ray's workers and their decoders below it, each without the shared object store."""
    found = {}
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            name = " ".join(process.cmdline()[:4])
            if process.pid == pid or name.startswith("ray::") or "sandbox_child" in name:
                memory = process.memory_info()
                found[process.pid] = (memory.rss - memory.shared) / MEBIBYTE
        except psutil.Error:
            continue
    return found


def a_tenth(source: Path, target: Path) -> Path:
    """Links to every tenth photo of a folder, and to its sidecar."""
    target.mkdir()
    for file in image_files(source)[::10]:
        for part in (file, sidecar_of(file)):
            if part.exists():
                os.link(part, target / part.name)
    return target


def table(measured: list[Measured]) -> str:
    lines = [
        "# Ingest of a large collection",
        "",
        "Simulated photographs of 128 x 128 pixels with sidecars, one face each; the whole job, start of Ray included.",
        "Resident memory without shared pages, sampled twice a second.",
        "",
        f"- device: {platform.machine()} CPU, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end",
        f"- Python {platform.python_version()}, Ray {ray.__version__}",
        "",
        "| files | rows | seconds | files a second | driver, MiB | largest worker, MiB | driver and workers, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {m.files} | {m.rows} | {m.seconds:.0f} | {m.files / m.seconds:.0f} | {m.driver:.0f} | {m.worker:.0f} "
        f"| {m.together:.0f} |"
        for m in measured
    ]
    few, many = measured
    lines += ["", f"Ten times the files: the driver's memory is {many.driver / few.driver:.2f} times as large."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--photographs", type=int, default=100_000)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.source and options.source.resolve().parent) as name:
        folder, source = Path(name), options.source
        if source is None:
            source = folder / "photographs"
            write_photographs(source, options.photographs, seed=11, size=128)
        few = run(a_tenth(source, folder / "few"), folder / "few-shards")
        text = table([few, run(source, folder / "many-shards")])
    print(text)
    if options.write:
        (Path(__file__).parent / "results" / "ingest.md").write_text(text)


if __name__ == "__main__":
    main()
