"""README.md and docs/ name only what there is: a page that does not fails with its line and what is wrong.

What is right all the same, since others define it, stands in ``pages.ELSEWHERE`` with the reason.
"""

import functools
import itertools
import re
import tomllib
import typing
from collections import Counter
from collections.abc import Collection

import pytest

from blades_dist.config import BilevelConfig, ImageTowerConfig, ImportConfig, IngestConfig, TextTowerConfig
from blades_dist.data.records import REASONS
from blades_dist.perturb import PLATFORMS
from blades_dist.serving.environment import ENVIRONMENT
from tests.pages import ELSEWHERE, ROOT, Page, repository

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


@functools.cache
def page(path: str) -> Page:
    return Page(path, (ROOT / path).read_text())


@pytest.mark.parametrize("path", PAGES)
def test_a_page_names_only_what_there_is(path: str) -> None:
    problems = page(path).problems
    assert not problems, "\n".join(problems)


PLANTED = [
    ("see [there](data.md#splits)", None),
    ("see [there](nowhere.md)", "the link nowhere.md leads nowhere"),
    ("see [there](data.md#streams)", "data.md#streams: no such heading"),
    ("`training/prefetch.py` reads ahead", None),
    ("`training/feed.py` reads ahead", "there is no training/feed.py"),
    ("all of `benchmarks/result/`", "there is no benchmarks/result/"),
    ("`train.lr=1e-4`, `guard.nonfinite`, `scheduler: population`, `train.workers: [2, 8]`", None),
    ("`train.learning_rate`", "no configuration has the key 'train.learning_rate'"),
    ("`train.workers: [8, 2]`", "train.workers: '[8, 2]' is not allowed"),
    ("`bilevel.lookahead=adam`", "bilevel.lookahead: 'adam' is not allowed"),
    ("`scheduler: halving`", "scheduler: 'halving' is not allowed"),
    ("    train.guard.nonfinite=halt    stops", "train.guard.nonfinite: 'halt' is not allowed"),
    ("    evaluate:\n      detector: {oc: x}", "unknown key 'detector'"),
    ("    python jobs/pretrain.py --config jobs/configs/demo.yaml train.lr=1e-4  # quick", None),
    ("    python jobs/pretrain.py --config FILE \\\n        train.rate=1", "no configuration has the key 'train.rate'"),
    ("    python jobs/pretrain.py --configuration x", "unrecognized arguments: --configuration"),
    ("    python jobs/train.py", "there is no jobs/train.py"),
    ("    python jobs/fit_detector.py output=x", "encoder: Field required"),
    ("    python jobs/ingest.py --inspect photo.jpg", None),
    ("    python jobs/predict.py x", "predict: target: Field required"),
    ("`python jobs/evaluate.py --config FILE [--equalise]`", None),
    ("`make demo DEMO='pretrain.train.epochs=2'`", None),
    ("`make demo DEMO='pretrain.train.epoch=2'`", "no configuration has the key 'pretrain.train.epoch'"),
    ("    DATA=photos make demos", "make has no target demos"),
    ("    make demo FOLDER=photos", "the Makefile does not read FOLDER"),
    ("    from blades_dist.client import Client, Server", "there is no blades_dist.client.Server"),
    ("`blades_dist.training.sinks.read_metrics(RUN)`", "there is no blades_dist.training.sinks.read_metrics"),
    ("```python\nprint(1\n```", "this is not Python"),
    ("`speed/data_wait_share`, in `checkpoint.json`", None),
    ("`speed/data_wait_share_of_run`", "data_wait_share_of_run is nowhere in the code"),
    ("in `statements.json`", "statements.json is nowhere in the code"),
    ("set BLADES_CHROMIUM", None),
    ("set BLADES_FIREFOX", "nothing reads BLADES_FIREFOX"),
]


@pytest.mark.parametrize(("text", "expected"), PLANTED)
def test_a_planted_error_is_found(text: str, expected: str | None) -> None:
    problems = Page("docs/planted.md", text).problems
    if expected is None:
        assert not problems
    else:
        assert len(problems) == 1 and expected in problems[0], problems


def test_every_kind_of_check_has_its_subjects() -> None:
    counts = sum((page(path).counts for path in PAGES), Counter())
    print(dict(counts))
    assert set(counts) == {
        "anchor",
        "command",
        "file",
        "key",
        "link",
        "module",
        "name",
        "option",
        "override",
        "python",
        "variable",
    }


def test_every_dependency_is_listed_with_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    names = {re.match(r"[\w.-]+", requirement)[0] for requirement in wanted} - {"blades_dist"}
    listed = (ROOT / "docs" / "dependencies.md").read_text().lower()
    missing = [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name.lower())}(?![\w-])", listed)]
    assert not missing


def test_documents_that_the_code_names_exist() -> None:
    for path, text in repository().items():
        for name in re.findall(r"\bdocs/\w+\.md", text):
            assert (ROOT / name).exists(), f"{path} names {name}"


TABLES = [
    ("docs/data.md", "reason", REASONS),
    ("docs/data.md", "locator", typing.get_args(IngestConfig.model_fields["locator"].annotation)),
    ("docs/sources.md", "format", set(typing.get_args(IngestConfig.model_fields["format"].annotation)) - {"auto"}),
    ("docs/imports.md", "`format`", set(typing.get_args(ImportConfig.model_fields["format"].annotation)) - {"auto"}),
    ("docs/weights.md", "weighting", typing.get_args(BilevelConfig.model_fields["weighting"].annotation)),
    ("docs/models.md", "`model.image.preset`", typing.get_args(ImageTowerConfig.model_fields["preset"].annotation)),
    ("docs/models.md", "`model.text.kind`", typing.get_args(TextTowerConfig.model_fields["kind"].annotation)),
    ("docs/pretraining.md", "`bilevel.route`", typing.get_args(BilevelConfig.model_fields["route"].annotation)),
    ("docs/robustness.md", "platform", PLATFORMS),
]


@pytest.mark.parametrize(("path", "heading", "names"), TABLES)
def test_a_table_has_a_row_for_each_name_of_the_code(path: str, heading: str, names: Collection[str]) -> None:
    table = re.search(rf"^\| {re.escape(heading)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", page(path).text, re.MULTILINE)
    rows = [re.match(r"\| `?([\w.]+)`?", row)[1] for row in table[1].splitlines()]
    assert sorted(rows) == sorted(names)


def test_the_environment_of_a_cluster_is_the_one_that_the_job_sets() -> None:
    shown = re.findall(r"^    (RAY_\w+)=(.*)$", page("docs/serving.md").text, re.MULTILINE)
    assert dict(shown) == ENVIRONMENT


def test_no_exception_is_left_without_its_use() -> None:
    texts = [page(path).text for path in PAGES]
    assert not [name for name in ELSEWHERE if not any(name in text for text in texts)]
