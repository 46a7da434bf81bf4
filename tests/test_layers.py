"""The architecture's rules that a reader cannot see at a glance: who imports whom, and that nobody pickles."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "blades_dist"
# By contract: a file, and an import in it that is not allowed.
BREACHES = {
    "layers": ("config/serve.py", "import blades_dist.serving.problems"),
    "mathematics": ("models/joint.py", "import blades_dist.data.stream"),
    "ray": ("evaluate/rates.py", "import ray"),
    "deepspeed": ("training/run.py", "import deepspeed"),
    "service": ("serving/api.py", "import blades_dist.evaluate.rates"),
}


def test_the_import_contracts_hold() -> None:
    """Those of pyproject.toml: imports only go down, and who may import Ray and DeepSpeed."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_each_contract_can_be_broken(tmp_path: Path) -> None:
    """A contract that checks nothing would be kept for ever: every kind of breach is reported by its contract."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    for contract in contracts:
        module, breach = BREACHES[contract["id"]]
        copy = tmp_path / contract["id"]
        shutil.copytree(PACKAGE, copy / "blades_dist", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        with (copy / "blades_dist" / module).open("a") as file:
            file.write(f"\n{breach}\n")
        command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--contract", contract["id"]]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
        assert done.returncode == 1 and f"{contract['name']} BROKEN" in done.stdout, done.stdout + done.stderr


def test_nothing_is_pickled() -> None:
    pattern = re.compile(r"import c?pickle|pickle\.\w|joblib\.\w|import joblib|torch\.(load|save)\(|allow_pickle=True")
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]:
        lines = path.read_text().splitlines()
        found = [line for line in lines if pattern.search(line) and "weights_only=True" not in line]
        assert not found, f"{path}: {found}"


def test_jobs_stay_small() -> None:
    for path in (ROOT / "jobs").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 80, f"{path.name}: a job parses, builds and calls"
