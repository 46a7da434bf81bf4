"""Configuration: presets, overrides, and errors that name the key and what is allowed."""

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from pydantic import Field

from blades_dist import demo, settings
from blades_dist.config import (
    FitConfig,
    PretrainConfig,
    RobustnessConfig,
    ServeConfig,
)
from blades_dist.settings import Config, ConfigError, load
from blades_dist.tuning.config import SweepConfig

ROOT = Path(__file__).parents[1]
PRESETS = ROOT / "jobs" / "configs"
STAGES: dict[str, type[Config]] = {
    **demo.STAGES,
    "robustness": RobustnessConfig,
    "serve": ServeConfig,
    "sweep": SweepConfig,
}


@pytest.mark.parametrize("preset", ["demo", "paper", "cluster"])
def test_every_section_of_every_preset_is_valid(preset: str) -> None:
    file = PRESETS / f"{preset}.yaml"
    sections = yaml.safe_load(file.read_text())
    assert "pretrain" in sections
    for section in sections:
        load(STAGES[section], section, file)


def test_the_paper_preset_is_the_papers() -> None:
    config = load(PretrainConfig, "pretrain", PRESETS / "paper.yaml")
    train = config.train
    assert config.model.image.preset == "resnet50" and config.data.image_size == 224
    assert (train.batch_size, train.epochs, train.lr, train.schedule) == (48, 20, 1e-5, "cosine")
    assert (config.bilevel.lr, config.loss.gamma) == (3e-4, 2.0)
    fit = load(FitConfig, "fit", PRESETS / "paper.yaml")
    assert (fit.oc.n_components, fit.fpr) == (10, 0.05)
    assert load(PretrainConfig, "pretrain", PRESETS / "cluster.yaml").train.precision == "bf16"


def test_overrides_are_typed_and_win() -> None:
    config = load(PretrainConfig, "pretrain", PRESETS / "demo.yaml", ["train.lr=1e-4", "train.gpu=true", "name=x"])
    assert (config.train.lr, config.train.gpu, config.name) == (1e-4, True, "x")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lrr=1", r"unknown key 'train.lrr'; allowed here: lr, weight_decay"),
        ("trian.lr=1", r"unknown key 'trian'; allowed here: name, storage, start_from, data"),
        ("train.lr=fast", r"train.lr: .*\(given: 'fast'\)"),
        ("train.batch_size=0", r"train.batch_size: .*greater than or equal to 1"),
        ("train.zero_stage=3", r"train.zero_stage: ZeRO stage 3 .* allowed: 0, 1, 2"),
        ("model.text.heads=3", r"model.text: heads: 3 does not divide width 64"),
        ("data.val_split=train", r"data: val_split: the outer objective needs photographs"),
        ("train.lr", r"override 'train.lr' is not of the form"),
    ],
)
def test_bad_values_are_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(PretrainConfig, "pretrain", PRESETS / "demo.yaml", [override])


def test_a_missing_file_or_section_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(FitConfig, "fit", tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_text("ingest: {}\n")
    with pytest.raises(ConfigError, match="has no section 'fit'; it has: ingest"):
        load(FitConfig, "fit", tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("job", "arguments", "key", "value"),
    [
        ("demo", ["pretrain.train.epochs=2"], "pretrain.train.epochs", 2),
        ("evaluate", ["--config", "demo.yaml", "bootstrap=700"], "evaluate.bootstrap", 700),
        ("export_onnx", ["some/detector", "2026"], "export.output", "2026"),
        ("fit_detector", ["--config", "demo.yaml", "oc.n_components=3"], "fit.oc.n_components", 3),
        ("import_checkpoint", ["weights.safetensors", "output=x"], "import.checkpoint", "weights.safetensors"),
        ("ingest", ["--config", "demo.yaml", "min_tags=2"], "ingest.min_tags", 2),
        ("predict", ["1e3", "photo=1.jpg", "fpr=0.01"], None, "unknown key 'photo'"),
        ("predict", ["1e3", "./photo=1.jpg", "fpr=0.01", "--faces", "crop"], "predict.target", "photo=1.jpg"),
        ("pretrain", ["--config", "demo.yaml", "train.lr=1e-4"], "pretrain.train.lr", 1e-4),
        ("robustness", ["--config", "demo.yaml", "bootstrap=700"], "robustness.bootstrap", 700),
        ("serve", ["detector=x", "port=8001"], "serve.port", 8001),
        ("sweep", ["--config", "demo.yaml", "concurrent=1"], "sweep.concurrent", 1),
    ],
)
def test_every_job_prints_its_configuration_with_overrides(
    job: str, arguments: list[str], key: str | None, value: object
) -> None:
    arguments = [str(PRESETS / item) if item.endswith(".yaml") else item for item in arguments]
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *arguments, "--print-config"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if key is None:
        assert done.returncode == 2 and str(value) in done.stderr, done.stderr
        return
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)
    for part in key.split("."):
        found = found[part]
    assert found == value


def test_every_job_is_in_the_table_above() -> None:
    mark = test_every_job_prints_its_configuration_with_overrides.pytestmark[0]
    assert {row[0] for row in mark.args[1]} == {path.stem for path in (ROOT / "jobs").glob("*.py")}


def test_a_job_prints_its_configuration_and_refuses_bad_keys() -> None:
    job = [sys.executable, str(ROOT / "jobs" / "pretrain.py"), "--config", str(PRESETS / "demo.yaml")]
    printed = subprocess.run([*job, "--print-config", "train.lr=1e-4"], capture_output=True, text=True, check=True)
    assert yaml.safe_load(printed.stdout)["pretrain"]["train"]["lr"] == 1e-4
    refused = subprocess.run([*job, "train.nope=1"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "unknown key 'train.nope'" in refused.stderr and "Traceback" not in refused.stderr


_FIT = {"encoder": "e", "shards": "s", "output": "o"}


class _Inner(Config):
    renamed: ClassVar = {"old": "new"}

    new: int = 0


class _Outer(Config):
    renamed: ClassVar = {"within": "inside"}

    inside: _Inner = _Inner()
    maybe: _Inner | None = None
    several: dict[str, _Inner] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("stage", "given", "told"),
    [
        (_Inner, {"old": 3}, ["old is now new"]),
        (_Outer, {"inside": {"old": 3}}, ["inside.old is now inside.new"]),
        (_Outer, {"within": {"old": 3}}, ["within is now inside", "inside.old is now inside.new"]),
        (_Outer, {"maybe": {"old": 3}}, ["maybe.old is now maybe.new"]),
        (_Outer, {"several": {"a": {"old": 3}}}, ["old is now new"]),
        (_Outer, {"inside": {"new": 3}}, []),
        *(
            (FitConfig, {**_FIT, "oc": {old: value}}, [f"oc.{old} is now oc.{new}"])
            for old, new, value in (
                ("components", "n_components", [2, 3]),
                ("covariance", "covariance_type", "diag"),
                ("pca", "n_pca_components", 4),
                ("regularisation", "reg_covar", 1e-3),
                ("starts", "n_init", 7),
                ("iterations", "max_iter", 9),
            )
        ),
    ],
)
def test_former_keys_are_read_with_one_line(
    stage: type[Config], given: dict, told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    settings._tell_renamed.cache_clear()
    found = [stage.model_validate(given) for _ in range(2)]
    assert [record.getMessage().split(";")[0].removeprefix("configuration: ") for record in caplog.records] == told
    assert str(found[0].model_dump()) == str(found[1].model_dump()) and "old" not in str(found[0].model_dump())
    leaves = dict(settings.flat(found[0].model_dump()))
    for key, value in settings.flat(given):
        now = settings.present_key(stage, key).replace("several.a.old", "several.a.new")  # a dictionary's keys are free
        assert str(leaves[now]) == str(value)


def test_a_former_key_in_an_override_meets_the_present_one_of_a_file(caplog: pytest.LogCaptureFixture) -> None:
    settings._tell_renamed.cache_clear()
    fit = load(FitConfig, "fit", PRESETS / "demo.yaml", ["oc.components=3", "oc.starts=2"])
    assert (fit.oc.n_components, fit.oc.n_init, fit.oc.covariance_type) == (3, 2, "diag") and len(caplog.records) == 2
    with pytest.raises(ConfigError, match=r"oc\.starts: the former name of oc\.n_init, which is given too; give one"):
        load(FitConfig, "fit", PRESETS / "demo.yaml", ["oc={starts: 2, n_init: 3}"])
    sweep = load(SweepConfig, "sweep", PRESETS / "demo.yaml", ["detectors.space={oc.pca: [4, 8]}"])
    assert list(sweep.detectors.space) == ["oc.n_pca_components"]


@pytest.mark.parametrize(
    ("stage", "section", "override", "message"),
    [
        (PretrainConfig, "pretrain", "read_out.bogus=1", r"unknown key 'read_out\.bogus'; allowed here: "),
        (
            SweepConfig,
            "sweep",
            "encoders.space={train.lr: {low: 1.0e-5, high: 0.1, logg: true}}",
            r"unknown key 'encoders\.space\.train\.lr\.logg'; allowed here: low, high, log, choices",
        ),
        (FitConfig, "fit", "kind=[a", r"override 'kind=\[a': the value is not YAML"),
    ],
)
def test_keys_of_sections_that_need_not_be_there(
    stage: type[Config], section: str, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(stage, section, PRESETS / "demo.yaml", [override])
