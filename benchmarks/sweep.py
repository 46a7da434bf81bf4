"""A sweep on simulated photographs, killed once and resumed; the best against the default, and what the objective knew.

python benchmarks/sweep.py                     the demo's preset and data set: prints the table
python benchmarks/sweep.py --write             also writes benchmarks/results/sweep.md
python benchmarks/sweep.py --folder DIR        keeps (and takes up) its data and its sweep there

The driver runs in a process of its own with a Ray of its own on two logical CPUs. When three runs have ended and
another has reported, every process of it gets SIGKILL; the same command is then started again. After the encoder trials
the placement groups and Train workers that are left are counted.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import ray
from device import cpu_name
from scipy.stats import spearmanr

from blades_dist.config import IngestConfig, RayConfig
from blades_dist.data.ingest import ingest
from blades_dist.detect.extract import Request, extract
from blades_dist.raylocal import cluster
from blades_dist.report.tables import Table
from blades_dist.settings import load
from blades_dist.simulate.dataset import write_generated, write_photographs
from blades_dist.simulate.generators import FAMILIES
from blades_dist.training.provenance import read_record
from blades_dist.tuning.config import SweepConfig
from blades_dist.tuning.detectors import Row, detector_config, encoders_of
from blades_dist.tuning.encoders import LEDGER, search_encoders
from blades_dist.tuning.features import by_source, extraction, faces_of
from blades_dist.tuning.ledger import Ledger, Run
from blades_dist.tuning.objective import area, trial_head
from blades_dist.tuning.plan import ENCODERS
from blades_dist.tuning.results import RESULT, TABLE
from blades_dist.tuning.sweep import check, sweep

ROOT = Path(__file__).parents[1]
PRESET = ROOT / "jobs" / "configs" / "demo.yaml"
CPUS = 2
LEFT, LOG, KILLED = "left_over.json", "driver.log", "killed.json"
HALFWAY = 45, 120  # steps of a run that is killed
AGREEMENT = 100  # detector trials, about, that are fitted again to see how they do against AI faces


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        if options.drive:
            drive(folder, options)
            return
        prepare(folder, options)
        killed = killed_once(folder)
        begin = time.monotonic()
        subprocess.run(_command(folder), check=True, stdout=(folder / LOG).open("a"), stderr=subprocess.STDOUT)
        text = report(folder, options, killed, time.monotonic() - begin)
    print(text)
    if options.write:
        (ROOT / "benchmarks" / "results" / "sweep.md").write_text(text)


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """Simulates and ingests, once."""
    preset: dict[str, object] = {"min_face_px": 48, "ray": {"num_cpus": CPUS}}
    sets: dict[str, dict[str, object]] = {
        "photographs": {"splits": {"train": 0.6, "val": 0.1, "calibration": 0.15, "test": 0.15}},
        "generated": {"kind": "generated", "splits": {"train": 0.4, "test": 0.6}},
    }
    if not (folder / "shards" / "photographs" / "manifest.json").is_file():
        write_photographs(folder / "photographs", options.photographs, seed=7, size=128)
    if not (folder / "shards" / "generated" / "manifest.json").is_file():
        write_generated(folder / "generated", list(FAMILIES), options.per_family, seed=7, size=128)
    for name, own in sets.items():
        if not (folder / "shards" / name / "manifest.json").is_file():
            values = {"source": folder / name, "output": folder / "shards" / name, **preset, **own}
            with cluster(RayConfig(num_cpus=CPUS)):
                ingest(IngestConfig.model_validate(values))


def configured(folder: Path, options: argparse.Namespace) -> SweepConfig:
    """The demo's sweep on these photographs."""
    overrides = [
        f"storage={folder}",
        f"pretrain.data.shards={folder / 'shards' / 'photographs'}",
        f"generated={folder / 'shards' / 'generated'}",
        f"pretrain.train.epochs={options.epochs}",
        f"encoders.candidates={options.candidates}",
        f"encoders.seeds={options.seeds}",
        f"detectors.trials={options.trials}",
        f"ray.num_cpus={CPUS}",
    ]
    return check(load(SweepConfig, "sweep", PRESET, overrides))


def drive(folder: Path, options: argparse.Namespace) -> None:
    """What ``jobs/sweep.py`` does, with a look at what the encoder trials have left behind."""

    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} sweep: {text}", flush=True)

    config = configured(folder, options)
    with cluster(config.ray):
        search_encoders(config, say)
        end = time.monotonic() + 30
        while any((left := left_over()).values()) and time.monotonic() < end:
            time.sleep(1)  # removed, but not yet in Ray's table
        (config.folder / LEFT).write_text(json.dumps(left))
        say(f"left over: {left}")
        sweep(config, say)


def left_over() -> dict[str, int]:
    """Placement groups that are not removed, and Train workers and controllers that live below this process."""
    groups = [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
    names = [process.name() for process in psutil.Process().children(recursive=True)]
    return {
        "placement groups": len(groups),
        "Train workers": sum(name.startswith("ray::RayTrainWorker") for name in names),
        "Train controllers": sum(name.startswith("ray::TrainController") for name in names),
        "placement group cleaners": sum(name.startswith("ray::PlacementGroupCleaner") for name in names),
    }


def killed_once(folder: Path) -> dict[str, str]:
    """Starts the driver, kills it with all below it while a run is halfway, and returns the state of every run then.

    What was killed already, by an earlier start of this benchmark, is not killed again.
    """
    file, states = folder / "sweep" / LEDGER, folder / KILLED
    if states.is_file():
        return dict(json.loads(states.read_text()))
    before = {run.name: last_step(run) for run in Ledger(file, repair=False).runs.values()}
    with (folder / LOG).open("a") as log:
        driver = subprocess.Popen(_command(folder), stdout=log, stderr=subprocess.STDOUT)
    while True:
        time.sleep(1)
        if driver.poll() is not None:
            raise SystemExit(f"the driver ended before it was killed; see {folder / LOG}")
        runs = list(Ledger(file, repair=False).runs.values())
        fresh = [last_step(run) for run in runs if run.state == "open" and last_step(run) > before.get(run.name, 0)]
        halfway = any(HALFWAY[0] <= step <= HALFWAY[1] for step in fresh)
        if sum(run.state != "open" for run in runs) >= 3 and halfway:
            break
    family = [*psutil.Process(driver.pid).children(recursive=True), psutil.Process(driver.pid)]
    for process in family:
        process.kill()
    psutil.wait_procs(family, timeout=60)
    driver.wait()
    found = {run.name: str(run.state) for run in Ledger(file).runs.values()}
    states.write_text(json.dumps(found))
    return found


def last_step(run: Run) -> int:
    """The step of a run's last read-out."""
    return run.reports[-1][0] if run.reports else 0


def report(folder: Path, options: argparse.Namespace, killed: dict[str, str], seconds: float) -> str:
    """Markdown of everything."""
    config = configured(folder, options)
    result, ledger = json.loads((config.folder / RESULT).read_text()), Ledger(config.folder / LEDGER)
    states = [run.state for run in ledger.runs.values()]
    starts = {name: _starts(config, name) for name in killed}
    resumed = [_resumed(name, starts[name]) for name, state in killed.items() if state == "open"]
    repeated = [name for name, state in killed.items() if state != "open" and len(starts[name]) > 1]
    rows = [Row(**row) for row in result["detectors"]]
    stopped_at = {run.name: run.reports[-1][0] for run in ledger.runs.values() if run.state == "stopped"}
    left = json.loads((config.folder / LEFT).read_text())
    found = (config.folder / TABLE).read_text()
    lines = [
        "# A sweep of encoders and detectors, killed once and resumed",
        "",
        "`python benchmarks/sweep.py --write`. Simulated photographs: results say that the machinery works, not how "
        "well it detects any real generator.",
        "",
        f"- device: {cpu_name()}, {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f} at the "
        f"end), Ray with {CPUS} logical CPUs",
        f"- Python {platform.python_version()}, Ray {version('ray')}, Optuna {version('optuna')}, "
        f"PyTorch {version('torch')}, scikit-learn {version('scikit-learn')}",
        f"- {options.photographs} photographs of 128 pixels, {options.epochs} epochs a run, "
        f"{options.seeds} seeds a configuration; the demo's model and spaces",
        f"- {len(states)} encoder runs: {states.count('finished')} finished, {states.count('stopped')} stopped early "
        f"(at steps {', '.join(map(str, sorted(stopped_at.values()))) or '-'} of "
        f"{max(run.reports[-1][0] for run in ledger.runs.values() if run.reports)}), {states.count('failed')} failed; "
        f"{len(rows)} detector trials on {len({row.candidate for row in rows})} configurations, "
        f"{sum(row.score is None for row in rows)} of them not possible (too few faces for the mixture), "
        f"{np.median([row.seconds for row in rows]):.2f} s each in the median",
        f"- killed with SIGKILL (driver and its Ray) when the runs were: "
        f"{', '.join(f'{name} {state}' for name, state in killed.items())}",
        f"- then started again, to the end in {seconds / 60:.1f} minutes: open runs that went on: "
        f"{', '.join(resumed) or 'none'}; runs that had ended and were trained again: {', '.join(repeated) or 'none'}",
        f"- left behind by the encoder trials, of which {len(stopped_at)} were stopped early: "
        f"{', '.join(f'{count} {name}' for name, count in left.items())}",
        "",
        "## What the self-supervised objective knows of AI faces",
        "",
        f"Spearman's correlation over some {AGREEMENT} detector trials of each term with the mean AUC against the "
        "labelled AI faces of the generated set's train split, which the search did not use; within: mean over "
        "configurations of the encoder of the correlation among its own trials.",
        "",
        Table.of_records(agreement(config, ledger, rows)).to_markdown(),
        found.replace(f"# Sweep {config.name}", "## What was found", 1).replace("\n## ", "\n### "),
    ]
    return "\n".join(lines)


def agreement(config: SweepConfig, ledger: Ledger, rows: list[Row]) -> list[dict[str, object]]:
    """Correlations of the objective and its terms with how well AI faces are found."""
    fitted, found = [row for row in rows if row.score is not None], []
    fitted = fitted[:: max(1, len(fitted) // AGREEMENT)]
    assert config.generated is not None
    with cluster(config.ray):
        for candidate in dict.fromkeys(row.candidate for row in fitted):
            encoder = encoders_of(config, ledger, candidate)[0]
            faces = faces_of(encoder, config)
            (other,) = extract([Request(encoder, config.generated, "train")], extraction(config), lambda _: None)
            for row in (row for row in fitted if row.candidate == candidate):
                head = trial_head(detector_config(config, row.values), faces.fit, config.fit.seed, threads=1)
                real = head.score(faces.held)
                others = by_source(other.features, other.sources).values()
                found.append((row, float(np.mean([area(real, head.score(part)) for part in others]))))
    terms = {"objective": [row.score for row, _ in found]}
    terms |= {name: [row.terms[name] for row, _ in found] for name in fitted[0].terms}
    truth, owner = np.array([value for _, value in found]), np.array([row.candidate for row, _ in found])
    found_rows: list[dict[str, object]] = []
    for name, values in terms.items():
        own = np.array(values, float)
        parts = [_spearman(own[owner == one], truth[owner == one]) for one in dict.fromkeys(owner.tolist())]
        known = [part for part in parts if not np.isnan(part)]
        within = f"{np.mean(known):+.2f}" if known else "constant"
        found_rows.append({"term": name, "over all": f"{_spearman(own, truth):+.2f}", "within": within})
    return found_rows


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    return float("nan") if np.ptp(first) == 0 or np.ptp(second) == 0 else float(spearmanr(first, second).statistic)


def _resumed(run: str, starts: list[int]) -> str:
    if len(starts) == 1:
        return f"{run} from its beginning" if starts == [0] else f"{run} from step {starts[0]}"
    return f"{run} from step {starts[-1]}"


def _starts(config: SweepConfig, run: str) -> list[int]:
    """The steps at which a run's training has started, the first one at 0."""
    return [start["step"] for start in read_record(config.folder / ENCODERS / f"{config.name}-{run}")["starts"]]


def _command(folder: Path) -> list[str]:
    return [sys.executable, __file__, *sys.argv[1:], "--drive", "--folder", str(folder)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    parser.add_argument("--photographs", type=int, default=5000)
    parser.add_argument("--per-family", type=int, default=250)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--trials", type=int, default=110)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--drive", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
