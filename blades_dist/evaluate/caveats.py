"""What is told beside the numbers of an evaluation: of the detectors, of the data, of the versions."""

import importlib.metadata
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from blades_dist import __version__
from blades_dist.detect.heads import HEADS
from blades_dist.evaluate import report
from blades_dist.evaluate.candidates import CandidateDetector
from blades_dist.evaluate.inputs import PreparedTestSet
from blades_dist.evaluate.scoring import SCORER_FPR, FacesBySide, ScoredCandidate
from blades_dist.simulate.generators import FAMILIES

_LEFT_OUT = "Every generator was judged by a head that had not seen it: one was trained for each, on all the others."


def facts(candidate: CandidateDetector, scored: ScoredCandidate, faces: FacesBySide) -> report.Facts:
    """What is to be known of a candidate beside its numbers."""
    if candidate.scorer is not None:
        calibrated = scored.calibrated_on or None
        return report.Facts(
            kind=f"function {candidate.where}",
            threshold=scored.threshold,
            nominal_fpr=SCORER_FPR if calibrated else None,
            calibrated_on=calibrated,
            bundle=candidate.where,
            encoder="",
            not_held_out=(),
            provenance={},
            note="What it was trained on is not known here.",
        )
    bundles = candidate.bundles
    info = bundles[0].detector.info
    ids = ", ".join(bundle.detector.id[:16] for bundle in bundles)
    seen = set() if candidate.by_generator else set(info.training.generated) & set(faces.rows)
    notes = [*([_LEFT_OUT] if candidate.by_generator else []), *(f"{note}." for note in info.training.notes)]
    return report.Facts(
        kind=f"{HEADS[info.kind].title} ({info.kind})",
        threshold=scored.threshold,
        nominal_fpr=info.fpr,
        calibrated_on=scored.calibrated_on,
        bundle=f"{candidate.where} (id {ids})",
        encoder=info.provenance.encoder_digest[:16],
        not_held_out=tuple(sorted(seen)),
        provenance=info.provenance.model_dump(mode="json"),
        note=" ".join(notes),
        training={name.replace("_", " "): f"{value:.6g}" for name, value in info.training.figures.items()},
    )


def caveats(candidates: Mapping[str, CandidateDetector], prepared: PreparedTestSet, faces: FacesBySide) -> list[str]:
    """What a reader must know before trusting the numbers."""
    found = []
    for name, candidate in candidates.items():
        found += seen_in_training(name, candidate, faces.rows)
        digests = {bundle.detector.info.provenance.manifest_digest for bundle in candidate.bundles}
        if digests - {prepared.photographs.digest()}:
            found.append(
                f"{name} was fitted on another shard set than the one evaluated: whether photographs of this test "
                "set were among those it was fitted on was not checked."
            )
    photos = len(set(faces.real.paths))
    if photos < len(faces.real):
        found.append(
            f"The {len(faces.real)} faces come from {photos} photographs. Faces of one photograph are not "
            "independent, so that the intervals are a little too narrow."
        )
    return found


def seen_in_training(name: str, candidate: CandidateDetector, generators: Iterable[str]) -> list[str]:
    """A sentence if the candidate was trained on some of those generators that it judges."""
    if candidate.bundle is None:
        return []
    seen = sorted(set(candidate.bundle.detector.info.training.generated) & set(generators))
    if not seen:
        return []
    return [
        f"{name} was trained on images of {', '.join(seen)}: its numbers on them say nothing about generators that it "
        "has not seen."
    ]


def simulated(folders: tuple[Path, ...], faces: FacesBySide) -> str | None:
    """What shows that the data are simulated; None if nothing does."""
    pairs = zip(faces.generated.sources, faces.generated.paths, strict=True)
    families = {source for source, path in pairs if source in FAMILIES and re.search(r"(^|/)\d{6}\.jpg$", path)}
    if families:
        return f"this project's simulator, families {', '.join(sorted(families))}"
    marked = [place for folder in folders for place in (folder, *folder.resolve().parents[:2]) if _marked(place)]
    return "a folder marked by simulation.json" if marked else None


def library_versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    names = ("torch", "numpy", "scikit-learn", "scipy", "matplotlib", "pyarrow", "opencv-python-headless", "ray")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"blades_dist": __version__, "python": platform.python_version(), **found}


def _marked(folder: Path) -> bool:
    return (folder / "simulation.json").is_file()
