"""The whole path on real photographs and real AI-generated faces: audits, three encoders, full reports.

python benchmarks/real_report.py FOLDER --work SCRATCH            everything, and prints the table
python benchmarks/real_report.py FOLDER --work SCRATCH --write    also writes benchmarks/results/real_report.md

FOLDER holds photographs_with_exif/, photographs_without_exif/, ai_generated/<generator>/ and index.jsonl (of each file
its source). An encoder is pretrained on the photographs with EXIF, one more with every weight at 1, one is left
untrained; mixtures, nearest neighbours and a perceptron that leaves one generator out are fitted and calibrated on the
same photographs. Steps that are done are not done again. No picture and no file name is written outside SCRATCH.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from device import cpu_name

ROOT = Path(__file__).parents[1]
MATCHED = ("stylegan2", "hardfake-unsplash")  # the pair that agrees in size and codec
SPLITS = "{train: 0.55, val: 0.1, calibration: 0.25, test: 0.1}"
TOWER = [  # the demo's small towers: 2 CPU cores
    "model.image={preset: resnet_tiny, highpass: 6.0}",
    "model.text={layers: 2, width: 64, heads: 4}",
    "model.embed_dim=128",
    "data.image_size=128",
    "bilevel={lr: 1.0e-2, every: 4}",
    "train={lr: 2.0e-3, warmup_steps: 20, batch_size: 16, checkpoint_every: 200, log_every: 50}",
]

CHANCE = """\
Its interval holds 0.5: nothing was learned that can be told from chance. The AUCs below say what every stage does with
real files, not what the method reaches with 130,000; one under 0.5 means that a generator's faces are less unusual to
this encoder than the photographs they are compared with. It takes no encoder for that: faces
of one generator, all cut and lit alike, can differ less from each other than photographs do, and so lie nearer to the
middle of any Gaussian. real_spread.md measures it on the matched pair."""


def job(name: str, *arguments: str) -> None:
    """One job as a user would start it."""
    print(f"== {name} {' '.join(arguments)[:150]}", flush=True)
    subprocess.run([sys.executable, str(ROOT / "jobs" / f"{name}.py"), *arguments], check=True, cwd=ROOT)


def linked(folder: Path, work: Path) -> dict[str, Path]:
    """Folders of links, by what a side is called: photographs with and without EXIF, the matched photographs, fakes."""
    lines = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    sets: dict[str, list[tuple[str, Path]]] = {}
    for line in lines:
        file = folder / line["file"]
        side, _, rest = line["file"].partition("/")
        if side == "ai_generated":
            sets.setdefault("fakes", []).append((rest, file))
            if rest.startswith(f"{MATCHED[0]}/"):
                sets.setdefault("matched_fakes", []).append((rest, file))
        elif line["source"] == MATCHED[1]:
            sets.setdefault("matched", []).append((f"{MATCHED[1]}/{file.name}", file))
        elif side == "photographs_without_exif":
            sets.setdefault("headshots", []).append((f"headshots/{file.name}", file))
        else:
            sets.setdefault("with_exif", []).append((f"with_exif/{file.name}", file))
    for name, files in sets.items():
        for rest, file in files:
            place = work / "links" / name / rest
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                os.link(file, place) if file.stat().st_dev == work.stat().st_dev else place.write_bytes(
                    file.read_bytes()
                )
    return {name: work / "links" / name for name in sets}


def prepare(links: dict[str, Path], work: Path) -> None:
    """Shard sets: photographs with EXIF in four splits, everything else as test sets, faces located or whole."""
    job("ingest", f"source={links['with_exif']}", f"output={work / 'shards'}", f"splits={SPLITS}", "min_face_px=48")
    test = ["splits={test: 1.0}", "min_face_px=48", "near_duplicate_bits=0"]
    for name in ("with_exif", "headshots", "matched"):
        job("ingest", f"source={links[name]}", f"output={work / 'test' / name}", "min_tags=0", *test)
    job("ingest", f"source={links['fakes']}", f"output={work / 'test' / 'fakes'}", "kind=generated", *test)
    train = ["splits={train: 0.4, test: 0.6}", "min_face_px=48", "near_duplicate_bits=0"]
    job("ingest", f"source={links['fakes']}", f"output={work / 'fakes'}", "kind=generated", *train)
    whole = [*test, "faces=whole"]
    job("ingest", f"source={links['matched']}", f"output={work / 'whole' / 'matched'}", "min_tags=0", *whole)
    job("ingest", f"source={links['matched_fakes']}", f"output={work / 'whole' / 'fakes'}", "kind=generated", *whole)


def audits(work: Path) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """(photographs, how faces were cut, audit before, audit after both sides were equalised)."""
    from blades_dist.evaluate.equalise import equalise
    from blades_dist.evaluate.parity import audit_sets

    def look(real: Path, generated: Path) -> dict[str, Any]:
        found = audit_sets(real, generated, "test")
        return {name: estimate for name, estimate in found.container_auc.items() if name in found.generators}

    pairs = [
        (name, "located", work / "test" / name, work / "test" / "fakes")
        for name in ("matched", "headshots", "with_exif")
    ]
    pairs.insert(0, ("matched", "whole", work / "whole" / "matched", work / "whole" / "fakes"))
    for name, cut, real, generated in pairs:
        made = equalise(real, generated, work / "equal" / f"{name}-{cut}")
        yield name, cut, look(real, generated), look(made.photographs, made.generated)


def encoders(work: Path, epochs: int) -> None:
    """The same tower three times: weights learned, every weight 1, untrained."""
    for name, extra in (
        ("learned", [f"train.epochs={epochs}"]),
        ("equal", [f"train.epochs={epochs}", "bilevel.weighting=equal"]),
        ("untrained", ["train.epochs=0"]),
    ):
        if not (work / "runs" / name / "encoder").is_dir():
            data = [f"data.shards={work / 'shards'}", f"storage={work / 'runs'}", f"name={name}"]
            job("pretrain", *data, *TOWER, *extra)


def detectors(work: Path) -> dict[str, Path]:
    """Heads on the three encoders, calibrated on photographs with EXIF that nothing was fitted to."""
    few = ["oc={n_components: 1, covariance_type: diag}", "fpr=0.05", "re_encodings=[jpeg95, jpeg75]"]
    wanted = {name: (name, "oc") for name in ("learned", "untrained", "equal")}
    wanted |= {"knn": ("learned", "knn"), "mahalanobis": ("learned", "mahalanobis"), "bc": ("learned", "bc")}
    for name, (run, kind) in wanted.items():
        extra = [f"generated={work / 'fakes'}", "leave_one_out=true"] if kind == "bc" else []
        given = [f"encoder={work / 'runs' / run / 'encoder'}", f"shards={work / 'shards'}", f"kind={kind}"]
        job("fit_detector", *given, *few, *extra, f"output={work / 'detectors' / name}")
    return {name: work / "detectors" / name for name in wanted}


def reports(work: Path, found: dict[str, Path]) -> dict[str, Any]:
    """The matched pair first, as whole pictures and as located faces, then all generators; each equalised too."""
    sets = {
        "matched pair, whole pictures": (work / "whole" / "matched", work / "whole" / "fakes", False),
        "matched pair, located faces, equalised": (work / "test" / "matched", work / "fakes", True),
        "photographs with EXIF (held out), equalised": (work / "shards", work / "fakes", True),
    }
    results = {}
    for i, (title, (real, generated, equal)) in enumerate(sets.items()):
        given = [f"detectors.{name}={folder}" for name, folder in found.items()]
        if i == 1:  # only the generator that matches
            generated = work / "test" / "stylegan2"
            source = work / "links" / "matched_fakes"
            test = ["splits={test: 1.0}", "min_face_px=48", "near_duplicate_bits=0"]
            job("ingest", f"source={source}", f"output={generated}", "kind=generated", *test)
        output = work / "reports" / str(i + 1)
        history = [f"history={work / 'runs' / 'learned'}", f"equalise={str(equal).lower()}"]
        job("evaluate", *given, f"shards={real}", f"generated={generated}", f"output={output}", *history)
        results[title] = json.loads((output / "results.json").read_text())
    return results


def table(folder: Path, work: Path, epochs: int) -> str:
    links = linked(folder, work)
    prepare(links, work)
    lines = ["# Real photographs against real AI-generated faces", "", (__doc__ or "").split("\n\n")[-1].strip(), ""]
    lines += [f"- device: {cpu_name()}, {os.cpu_count()} cores", f"- Python {platform.python_version()}, "]
    lines[-1] += ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "scikit-learn"))
    lines += ["", "## What the containers give away", ""]
    lines += [
        "| photographs | faces | generator | AUC before | AUC after equalising | n |",
        "|---|---|---|---|---|---|",
    ]
    for name, cut, before, after in audits(work):
        for generator in before:
            a, b = before[generator], after.get(generator)
            other = "n/a" if b is None else f"{b.value:.2f} [{b.low:.2f}, {b.high:.2f}]"
            counted = f"{a.n_real} + {a.n_generated}"
            lines.append(
                f"| {name} | {cut} | {generator} | {a.value:.2f} [{a.low:.2f}, {a.high:.2f}] | {other} | {counted} |"
            )
    encoders(work, epochs)
    validation = json.loads((work / "runs" / "learned" / "validation.json").read_text())
    coarse = validation["coarse_auc"]
    lines += ["", "## Detectors", ""]
    lines.append(
        f"Tower of the demo (resnet_tiny, 128 px), {epochs} epochs. Manipulation AUC on held-out photographs after "
        f"pretraining: {coarse['value']:.2f} [{coarse['low']:.2f}, {coarse['high']:.2f}] (n = {coarse['n']})."
    )
    if coarse["low"] <= 0.5 <= coarse["high"]:
        lines.append(CHANCE)
    for title, result in reports(work, detectors(work)).items():
        lines += ["", f"### {title}", "", f"> {result['audit']['verdict']}", ""]
        lines += [
            "| detector | generator | AUC [95%] | flagged / photographs flagged, % | n |",
            "|---|---|---|---|---|",
        ]
        for name, found in result["detectors"].items():
            fpr = found["confusion"]["FPR"]
            for generator, auc in found["ranking"]["AUC"]["generators"].items():
                interval = f"[{auc['low']:.2f}, {auc['high']:.2f}]" if auc["low"] is not None else ""
                flagged = f"{100 * found['detected'][generator]['value']:.0f} / {100 * fpr['value']:.0f}"
                counted = f"{auc['n_real']} + {auc['n_generated']}"
                lines.append(f"| {name} | {generator} | {auc['value']:.2f} {interval} | {flagged} | {counted} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="scratch folder; a rerun goes on there")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/real_report.md")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    text = table(options.folder.resolve(), options.work.resolve(), options.epochs)
    print(text)
    if options.write:
        (Path(__file__).parent / "results" / "real_report.md").write_text(text)


if __name__ == "__main__":
    main()
