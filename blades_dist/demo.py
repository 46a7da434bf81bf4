"""The main job end to end on one machine: images, shards, pretraining, detectors, report. What ``make demo`` runs."""

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blades_dist.config import EvaluateConfig, FitConfig, IngestConfig, PretrainConfig, SimulateConfig
from blades_dist.data.records import read_manifest
from blades_dist.progress import ProgressLine
from blades_dist.raylocal import head
from blades_dist.settings import Config, ConfigError, load

STAGES: dict[str, type[Config]] = {
    "simulate": SimulateConfig,
    "ingest": IngestConfig,
    "ingest_generated": IngestConfig,
    "pretrain": PretrainConfig,
    "fit": FitConfig,
    "evaluate": EvaluateConfig,
}
ROWS_PER_COMPONENT = 150  # fewer photographs than this a mixture component, and the demo asks for fewer components


class DemoError(RuntimeError):
    """A stage failed; it has said why on its own output."""


@dataclass(frozen=True)
class Demo:
    """Where things come from and go. ``data`` None: the embedded data set; ``overrides`` are ``stage.key=value``."""

    runs: Path
    config: Path
    data: Path | None = None
    fakes: Path | None = None
    equal_weights: bool = False
    overrides: tuple[str, ...] = ()

    def run(self) -> None:
        """Every stage in order, each as a user would start it; finished ones say so and are quick.

        Raises:
            DemoError: a stage failed.
            ConfigError: an override names no stage, or nothing that its stage has.
        """
        self._check_overrides()
        begin = time.monotonic()
        photographs, generated = (self.data, self.fakes) if self.data else self._simulate()
        with head() as environment:
            self._stage("Ingest: photographs", self._ingest(photographs, True), environment)
            if generated:
                self._stage("Ingest: AI-generated faces", self._ingest(generated, False), environment)
            for name, extra in self._encoders().items():
                self._stage(f"Pretrain: {name} (ray job submit)", self._pretrain(name, extra), environment)
            detectors = self._detectors(bool(generated))
            for name, command in detectors.items():
                self._stage(f"Fit and calibrate: {name}", command, environment)
            report = self.runs / "report" / "report.html"
            if generated:
                self._stage("Evaluate", self._evaluate(detectors), environment)
        print(f"\nDone in {(time.monotonic() - begin) / 60:.1f} minutes.")
        if generated:
            print(f"Report:   {report}")
        else:
            print("No AI-generated faces were given (FAKES=folder with one folder per generator): no report.")
        bundle = self.runs / "detectors" / "oc"
        example = next(iter(sorted(Path(photographs).rglob("*.jp*g"))), "IMAGE")
        print(f"Detector: {bundle}\nTry it:   {_python()} jobs/predict.py {bundle} {example}")
        print(f"Serve it: {_python()} jobs/serve.py detector={bundle}")

    def resolved(self) -> dict[str, dict[str, Any]]:
        """The configuration of every stage, with its overrides; paths are the preset's, which ``run`` replaces by those
        below ``runs``.

        Raises:
            ConfigError: as ``run``.
        """
        self._check_overrides()
        return {
            stage: load(kind, stage, self.config, self._overrides(stage)).model_dump(mode="json")
            for stage, kind in STAGES.items()
        }

    def _check_overrides(self) -> None:
        for item in self.overrides:
            if item.partition(".")[0] not in STAGES:
                raise ConfigError(f"override {item!r} names no stage; it must begin with one of {', '.join(STAGES)}")

    def _simulate(self) -> tuple[Path, Path]:
        from blades_dist.simulate.dataset import write_generated, write_photographs
        from blades_dist.simulate.generators import FAMILIES

        _title("Simulate: photographs with EXIF, and faces of five generator families")
        wanted = load(SimulateConfig, "simulate", self.config, self._overrides("simulate"))
        folder, processes = self.runs / "data", wanted.processes or os.cpu_count() or 1
        photographs, generated = folder / "photographs", folder / "generated"
        fixed = {"seed": wanted.seed, "size": wanted.size, "processes": processes}
        try:
            said = ProgressLine("simulated", "photographs")
            write_photographs(photographs, wanted.photographs, progress=said, **fixed)
            per_family = wanted.generated_per_family
            said = ProgressLine("simulated", "AI-generated faces")
            write_generated(generated, list(FAMILIES), per_family, progress=said, **fixed)
        except ValueError as error:  # the folder holds pictures made with other settings
            raise DemoError(str(error)) from None
        return photographs, generated

    def _encoders(self) -> dict[str, list[str]]:
        """Run name to overrides: the encoder, the same one untrained, and, if wanted, with every weight fixed at 1."""
        extra = {"pretrain": [], "untrained": ["train.epochs=0"]}
        if self.equal_weights:
            extra["equal"] = ["bilevel.weighting=equal"]
        return extra

    def _pretrain(self, name: str, extra: Sequence[str]) -> list[str]:
        shards = self._shards(True).resolve()
        wanted = load(PretrainConfig, "pretrain", self.config, [f"data.shards={shards}", *self._overrides("pretrain")])
        # A small collection of somebody's own: a batch must fit into every split.
        rows = read_manifest(shards).rows
        splits = (wanted.data.train_split, wanted.data.val_split)
        batch = min(wanted.train.batch_size, *(rows[split] for split in splits))
        settings = [f"name={name}", f"storage={self.runs.resolve()}", f"data.shards={shards}"]
        settings += [*self._overrides("pretrain"), f"train.batch_size={max(batch, 1)}", *extra]
        job = ["python", "jobs/pretrain.py", "--config", str(self.config), *settings]
        return [str(_scripts() / "ray"), "job", "submit", "--working-dir", ".", "--", *job]

    def _detectors(self, generated: bool) -> dict[str, list[str]]:
        rows = read_manifest(self._shards(True)).rows["train"]
        few = [f"oc.n_components={max(1, rows // ROWS_PER_COMPONENT)}"] if rows < 10 * ROWS_PER_COMPONENT else []
        commands = {"oc": self._fit("oc", "pretrain", *few)}
        if generated:
            bc = ["kind=bc", f"generated={self._shards(False)}", *few]
            families = read_manifest(self._shards(False)).sources
            # Every generator is judged by a perceptron that has not seen it, where there are others to train on.
            commands["bc"] = self._fit("bc", "pretrain", *bc, *(["leave_one_out=true"] if len(families) > 1 else []))
        for kind in ("mahalanobis", "knn"):
            commands[kind] = self._fit(kind, "pretrain", f"kind={kind}")
        for name in self._encoders():
            if name != "pretrain":
                commands[name] = self._fit(name, name, *few)
        return commands

    def _fit(self, name: str, run: str, *extra: str) -> list[str]:
        values = [f"encoder={self.runs / run / 'encoder'}", f"shards={self._shards(True)}"]
        values += [f"output={self.runs / 'detectors' / name}", *self._overrides("fit"), *extra]
        return [_python(), "jobs/fit_detector.py", "--config", str(self.config), *values]

    def _evaluate(self, detectors: Iterable[str]) -> list[str]:
        values = [f"detectors.{name}={self.runs / 'detectors' / name}" for name in detectors]
        values += [f"shards={self._shards(True)}", f"generated={self._shards(False)}"]
        values += [f"output={self.runs / 'report'}", f"history={self.runs / 'pretrain'}", *self._overrides("evaluate")]
        return [_python(), "jobs/evaluate.py", "--config", str(self.config), *values]

    def _ingest(self, source: Path, photographs: bool) -> list[str]:
        section = "ingest" if photographs else "ingest_generated"
        values = [f"source={source}", f"output={self._shards(photographs)}", *self._overrides(section)]
        return [_python(), "jobs/ingest.py", "--config", str(self.config), "--section", section, *values]

    def _shards(self, photographs: bool) -> Path:
        return self.runs / "shards" / ("photographs" if photographs else "generated")

    def _overrides(self, stage: str) -> list[str]:
        return [item.removeprefix(f"{stage}.") for item in self.overrides if item.startswith(f"{stage}.")]

    def _stage(self, title: str, command: list[str], environment: dict[str, str] | None = None) -> None:
        _title(title)
        begin = time.monotonic()
        status = subprocess.run(command, env=environment).returncode
        if status:
            raise DemoError(f"{title} failed with status {status}; its own message is above")
        print(f"({time.monotonic() - begin:.0f} s)", flush=True)


def _title(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def _python() -> str:
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _scripts() -> Path:
    return Path(sys.executable).parent
