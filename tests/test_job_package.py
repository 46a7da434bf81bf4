"""What `ray job submit --working-dir .` uploads, by Ray's own packaging."""

import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[1]
LIMIT_BYTES = 5 * 2**20


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of this checkout, whatever else lies in it."""
    target = tmp_path_factory.mktemp("package") / "package.zip"
    create_package(str(ROOT), target, include_gitignore=True)
    return target


def test_it_is_small(package: Path) -> None:
    print(f"{package.stat().st_size / 2**20:.2f} MiB")
    assert package.stat().st_size <= LIMIT_BYTES


def test_it_has_what_a_job_runs_and_nothing_else(package: Path) -> None:
    names = zipfile.ZipFile(package).namelist()
    assert {"jobs/pretrain.py", "jobs/configs/demo.yaml", "blades_dist/training/launch.py"} <= set(names)
    top = {name.split("/")[0] for name in names}
    assert not top & {".git", ".venv", "tests", "runs", "data", "dist", "build", "docs", "benchmarks"}, top
    assert not [name for name in names if name.endswith((".parquet", ".safetensors", ".whl", ".pyc", ".jpg", ".png"))]


def test_all_of_the_source_comes_along(package: Path) -> None:
    names = set(zipfile.ZipFile(package).namelist())
    suffixes = (".py", ".j2", ".html", ".js", ".css", ".svg")
    sources = [path for folder in ("blades_dist", "jobs") for path in (ROOT / folder).rglob("*")]
    needed = {str(path.relative_to(ROOT)) for path in sources if path.suffix in suffixes}
    assert needed and needed <= names, needed - names
