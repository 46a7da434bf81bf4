"""A Markdown page against the code, as far as a machine can tell: files, links, commands, keys, names.

Only code is read (spans in backticks, code blocks) besides links.
"""

import argparse
import ast
import functools
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import blades_dist.training.cli
from blades_dist import settings
from tests.config_keys import PLACEHOLDER, STAGES, openers, sections, value_of, wrong_key
from tests.jobs import run_job

ROOT = Path(__file__).parents[1]
# Names that nothing here defines, and that are right: who does.
ELSEWHERE = {
    "overlap_comm": "DeepSpeed's",
    "weights_only": "torch.load's",
    "read_json": "pandas'",
    "real_splits": "argument of evaluate.equalise",
    "config.yaml": "in a run's folder",
    "table.md": "in a sweep's folder",
    "tables.md": "in a report's folder",
    "prom_metrics_service_discovery.json": "Ray's",
    "k.json": "a member of a tar",
    "cNNN-sS.json": "in a sweep's folder",
    "text.tokens": "in an encoder's state",
    "text.last": "in an encoder's state",
    "BC_MLP.py": "in the released code",
    "serve_deployment": "a dashboard of Ray's",
    "tags.js": "made by the service, see serving.page",
}

FOLDERS = ("blades_dist", "jobs", "tests", "benchmarks", "cluster", ".ci")
TOP = "(?:docs|" + "|".join(map(re.escape, FOLDERS)) + ")"
IMPORT = r"from (blades_dist[\w.]*) import (\w+(?:, \w+)*)"
# A reader's file, a mathematical index, a variable of another program.
THEIRS = re.compile(r"[A-Z]+\.|\w+_i$|(?:RAY|TORCH|MLFLOW|WANDB|AWS|GOOGLE)_")
COMMANDS = ("python ", "pip ", "make ", "mlflow ", "wandb ", "kubectl ")
FILE = r"(?:py|md|toml|ya?ml|js|css|j2|html|sh|txt|json|jsonl|csv|parquet|png|safetensors|tex|db|npz|pth|pt|onnx)"


@functools.cache
def repository() -> dict[str, str]:
    """Path to text of every file but the documents and what checks them."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")] + list(ROOT.iterdir())
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(errors="ignore")
        for path in paths
        if path.is_file() and "__pycache__" not in path.parts and path.name not in ("test_docs.py", "pages.py")
    }


@functools.cache
def code() -> str:
    return "\n".join(text for path, text in repository().items() if not path.endswith(".md"))


@functools.cache
def words() -> frozenset[str]:
    return frozenset(re.findall(r"\w+", code())) | {Path(path).stem for path in repository()}


@functools.cache
def targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@dataclass(frozen=True)
class Job:
    """What a job's own ``--help`` run says: its parser, and the configuration that it reads."""

    parser: argparse.ArgumentParser
    stage: type[settings.Config] | None
    help: str

    @property
    def flags(self) -> dict[str, bool]:
        """Options that the job reads by hand, and whether a value follows."""
        return {flag: bool(value) for flag, value in re.findall(r"^(--\w+) ([A-Z]*)", self.help, re.MULTILINE)}


@functools.cache
def job(name: str) -> Job:
    parsers: list[argparse.ArgumentParser] = []
    stages: list[type[settings.Config]] = []
    original, shown = settings.argument_parser, argparse.ArgumentParser.print_help

    def argument_parser(stage: type[settings.Config], *rest: Any) -> argparse.ArgumentParser:
        stages.append(stage)
        return original(stage, *rest)

    def print_help(parser: argparse.ArgumentParser, file: Any = None) -> None:
        parsers.append(parser)
        shown(parser, file)

    with (
        mock.patch.object(settings, "argument_parser", argument_parser),
        mock.patch.object(blades_dist.training.cli, "argument_parser", argument_parser),
        mock.patch.object(argparse.ArgumentParser, "print_help", print_help),
    ):
        ended = run_job(f"{name}.py", "--help")
    assert ended.returncode == 0, ended.stderr
    return Job(parsers[0], stages[0] if stages else None, ended.stdout)


def positional(name: str) -> list[str]:
    """The keys whose values a job takes without them, as its script hands them to ``settings``."""
    given = re.search(r"positional=\((.*?)\)|\bnamed\([\w.]+, (.*?)\)", (ROOT / "jobs" / f"{name}.py").read_text())
    return re.findall(r'"(\w+)"', given[0]) if given else []


@dataclass(frozen=True)
class Piece:
    """Code in a page: a span, or a whole block and its language."""

    text: str
    line: int
    language: str | None = None  # None: a span

    @property
    def lines(self) -> Iterator[tuple[int, str]]:
        """Commands and the like with their line; one that ends in a backslash goes on in the next."""
        pending, begin = "", self.line
        for number, line in enumerate(self.text.splitlines(), self.line):
            begin = begin if pending else number
            if line.endswith("\\"):
                pending += line[:-1]
            else:
                yield begin, pending + line
                pending = ""


@dataclass
class Page:
    """A Markdown text, and what is wrong with it."""

    path: str
    text: str
    pieces: list[Piece] = field(default_factory=list)
    prose: str = ""
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._read()
        self._links()
        for piece in self.pieces:
            self._files(piece)
            self._modules(piece)
            self._keys(piece)
            self._names(piece)
            for line, text in piece.lines:
                self._commands(line, text, piece.language is None)
        for match in re.finditer(r"\bBLADES_[A-Z_]+", self.text):
            line = self.text.count("\n", 0, match.start()) + 1
            self._expect("variable", line, match[0] in words(), f"nothing reads {match[0]}")

    def _expect(self, kind: str, line: int, right: bool, problem: str) -> None:
        self.counts[kind] += 1
        if not right:
            self.problems.append(f"{self.path}:{line}: {problem}")

    def _read(self) -> None:
        """Blocks, then spans in what is left, which keeps its line numbers."""
        lines, prose, number = self.text.splitlines(), [], 0
        while number < len(lines):
            fence = re.match(r"```(\w*)", lines[number])
            end = number
            if fence:
                end = next(i for i in range(number + 1, len(lines)) if lines[i] == "```") + 1
                self.pieces.append(Piece("\n".join(lines[number + 1 : end - 1]), number + 2, fence[1]))
            elif lines[number].startswith("    ") and not (number and lines[number - 1].strip()):
                while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                    end += 1
                self.pieces.append(Piece("\n".join(line[4:] for line in lines[number:end]), number + 1, ""))
            prose += [""] * (end - number) or [lines[number]]
            number = max(end, number + 1)
        self.prose = "\n".join(prose)
        for match in re.finditer(r"`([^`]+)`", self.prose):
            line = self.prose.count("\n", 0, match.start()) + 1
            self.pieces.append(Piece(" ".join(match[1].split()), line))

    def _links(self) -> None:
        text = re.sub(r"`[^`]+`", "", self.prose)
        for match in re.finditer(r"\]\(([^)\s]+)\)", text):
            line = text.count("\n", 0, match.start()) + 1
            if re.match(r"[a-z]+:", match[1]):
                continue
            place, _, anchor = match[1].partition("#")
            target = (ROOT / self.path).parent / place if place else ROOT / self.path
            self._expect("link", line, target.exists(), f"the link {match[1]} leads nowhere")
            if anchor and target.exists():
                there = self.text if not place else target.read_text()
                self._expect("anchor", line, anchor in anchors(there), f"{match[1]}: no such heading")

    def _files(self, piece: Piece) -> None:
        """Files by path or by the end of one, and folders of the repository."""
        pattern = rf"(?<![\w/.~$*{{}}-])(?:(?:[\w.-]+/)*[\w-]+\.(?:py|md|toml|js|j2)|{TOP}/[\w./-]*)(?![\w*{{])"
        for match in re.finditer(pattern, piece.text):
            name, line = match[0].rstrip("./"), piece.line + piece.text.count("\n", 0, match.start())
            known = (ROOT / name).exists() or any(path.endswith(f"/{name}") for path in repository())
            known = known or (ROOT / "docs" / name).exists() or Path(name).name in ELSEWHERE
            self._expect("file", line, known, f"there is no {match[0]}")

    def _modules(self, piece: Piece) -> None:
        if piece.language == "python":
            self._expect("python", piece.line, parses(piece.text), "this is not Python")
        for match in re.finditer(rf"{IMPORT}|blades_dist(?:[.:]\w+)+", piece.text):
            line = piece.line + piece.text.count("\n", 0, match.start())
            names = [f"{match[1]}.{name}" for name in match[2].split(", ")] if match[1] else [match[0]]
            for name in names:
                self._expect("module", line, resolves(name.replace(":", ".")), f"there is no {name}")

    def _keys(self, piece: Piece) -> None:
        """``section.key``, ``key=value`` and ``key: value`` in spans; in blocks those that stand alone, and YAML."""
        if piece.language is not None:
            document = value_of(piece.text) if piece.text.split(":")[0] in STAGES else None
            if isinstance(document, dict):
                for stage, values in document.items():
                    self._whole(piece.line, stage, functools.partial(settings.validate, STAGES[stage], values))
            items = [(line, text.split("  ")[0]) for line, text in piece.lines if re.match(r"[a-z_.]+=\S", text)]
        else:
            items = [(piece.line, piece.text)]
        for line, text in items:
            for item in text.split() if text.count("=") > 1 else [text]:
                match = re.fullmatch(r"([a-z_]{2,}(?:\.\w+)*)(?:(?:=|: )(\S.*))?", item)
                if not match or match[1] in ELSEWHERE or re.search(rf"\.{FILE}$", match[1]):
                    continue
                dotted = "." in match[1]
                if (dotted and match[1].split(".")[0] in openers()) or (not dotted and match[2]):
                    problem = wrong_key(match[1], match[2], sections())
                    self._expect("key", line, problem is None, problem or "")

    def _names(self, piece: Piece) -> None:
        """Names with an underscore and names of files, in spans: somewhere in the code there must be one."""
        if piece.language is not None or piece.text.startswith(COMMANDS):
            return
        for name in re.findall(rf"(?<![\w/-])[\w-]+\.{FILE}\b|\b[A-Za-z]\w*_\w+", piece.text):
            if name.endswith((".py", ".md", ".js")) or THEIRS.match(name):  # files are checked by their path
                continue
            known = name.removesuffix("_total") in words() or ("." in name and name in code()) or name in ELSEWHERE
            known = known or any(path.endswith(f"/{name}") for path in repository())
            self._expect("name", piece.line, known, f"{name} is nowhere in the code")

    def _commands(self, line: int, text: str, span: bool) -> None:
        try:
            found = shlex.split(text, comments=True)
        except ValueError:
            return
        for place, word in enumerate(found):
            script = re.fullmatch(r"(?:\S+/)?(?:jobs/(\w+)\.py|(\w+)\.py)", word)
            name = script and (script[1] or script[2])
            if name and (script[1] or f"jobs/{name}.py" in repository()):
                self._job(line, name, found[place + 1 :], span)
                return
            if word == "make" and (len(found) > 1 or not span):
                self._make(line, found[:place], found[place + 1 :])
                return

    def _make(self, line: int, before: list[str], after: list[str]) -> None:
        for word in before + after:
            name, separator, value = word.partition("=")
            if separator:
                known = f"$({name})" in repository()["Makefile"]
                self._expect("command", line, known, f"the Makefile does not read {name}")
                if name == "DEMO":
                    self._job(line, "demo", shlex.split(value), False)
            elif word in ("&&", ";"):
                return
            else:
                self._expect("command", line, word in targets(), f"make has no target {word}")

    def _job(self, line: int, name: str, arguments: list[str], span: bool) -> None:
        if f"jobs/{name}.py" not in repository():
            self._expect("command", line, False, f"there is no jobs/{name}.py")
            return
        if not arguments:
            return
        there, rest, skip = job(name), [], False
        for word in arguments:
            if word.strip("[]") in there.flags:
                self._expect("option", line, True, "")
                skip = there.flags[word.strip("[]")]
            elif skip:
                skip = False
            elif word != "..." or (rest and rest[-1].startswith("--")):
                rest.append(word.strip("[]") if word.startswith("[") else word)
        rest = settings.named(rest, *positional(name))
        with mock.patch.object(argparse.ArgumentParser, "error", refuse):
            try:
                parsed = there.parser.parse_intermixed_args(rest)
            except argparse.ArgumentError as error:
                incomplete = span and "required" in str(error)
                self._expect("command", line, incomplete, f"{name}.py: {error}")
                return
        self.counts["option"] += sum(word.startswith("--") for word in rest)
        overrides, right = getattr(parsed, "overrides", []), True
        for item in overrides:
            key, separator, value = item.partition("=")
            stages = [there.stage] if there.stage else sections()
            problem = wrong_key(key, value, stages) if separator else f"{item!r} is no key=value"
            self._expect("override", line, problem is None, f"{name}.py: {problem}")
            right = right and problem is None
        another = getattr(parsed, "resume", None) or getattr(parsed, "start", None)  # the rest stands in a run's folder
        partial = another or PLACEHOLDER.search(" ".join(arguments))
        if right and there.stage and not partial and not span and not set(arguments) & set(there.flags):
            file = ROOT / parsed.config if parsed.config else None
            self._whole(line, name, lambda: settings.load(there.stage, parsed.section, file, overrides))
        else:
            self._expect("command", line, True, "")

    def _whole(self, line: int, name: str, make: Callable[[], object]) -> None:
        try:
            make()
            problem = ""
        except settings.ConfigError as error:
            problem = str(error)
        self._expect("command", line, not problem, f"{name}: {problem}")


def refuse(parser: argparse.ArgumentParser, message: str) -> None:
    raise argparse.ArgumentError(None, message)


def anchors(text: str) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def resolves(name: str) -> bool:
    """Whether a dotted name is a module of the package, or is defined at the top of one; nothing is imported."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = "/".join(parts[:length])
        text = repository().get(f"{path}.py", repository().get(f"{path}/__init__.py"))
        if text is not None:
            return length == len(parts) or parts[length] in defined(text)
    return False


@functools.cache
def defined(text: str) -> frozenset[str]:
    """The names that a module binds at its top, imported ones too."""
    names: set[str] = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(names)
