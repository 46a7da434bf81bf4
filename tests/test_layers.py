"""The architecture's rules that a reader cannot see at a glance: who imports what, and that nobody pickles."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "blades_dist"
RAY = {
    "raylocal.py",
    "data/ingest.py",
    "data/stream.py",
    "training/worker.py",
    "training/launch.py",
    "training/stopping.py",
}
RAY |= {"detect/extract.py", "detect/fitting.py"}
RAY_FOLDERS = ("serving/", "tuning/")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_only_the_named_modules_import_ray_and_deepspeed() -> None:
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if "ray" in imported(path):
            assert name in RAY or name.startswith(RAY_FOLDERS), f"{name} imports ray"
        if "deepspeed" in imported(path):
            assert name == "training/engine.py", f"{name} imports deepspeed"


def test_the_mathematics_loads_without_ray_and_deepspeed() -> None:
    modules = "bilevel.hypergradient, losses.fidelity, models.joint, models.export, manipulate, training.loop"
    names = ", ".join(f"blades_dist.{name.strip()}" for name in modules.split(","))
    code = f"import sys; sys.modules['ray'] = sys.modules['deepspeed'] = None; import {names}"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_nothing_is_pickled() -> None:
    pattern = re.compile(r"import c?pickle|pickle\.\w|joblib\.\w|import joblib|torch\.(load|save)\(|allow_pickle=True")
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]:
        lines = path.read_text().splitlines()
        found = [line for line in lines if pattern.search(line) and "weights_only=True" not in line]
        assert not found, f"{path}: {found}"


def test_jobs_stay_small() -> None:
    for path in (ROOT / "jobs").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 80, f"{path.name}: a job parses, builds and calls"
