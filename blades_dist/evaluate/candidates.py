"""What can be evaluated: detector bundles, leave-one-out fits of several bundles, and a user's own scorer."""

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blades_dist.detect.detector import INDEX, Detector, load_detector
from blades_dist.detect.fit import LEAVE_ONE_OUT

Scorer = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Crops, each (H, W, 3) uint8 RGB of any size, to (n,) scores: larger is more like a photograph. An attribute
``threshold``, if it has one, is the score below which it calls a face AI-generated."""


@dataclass(frozen=True)
class LoadedBundle:
    """A loaded bundle and its folder."""

    folder: Path
    detector: Detector


@dataclass(frozen=True)
class CandidateDetector:
    """Exactly one of: a ``bundle`` for every generator; ``by_generator``, each of which has not seen that generator;
    or a ``scorer``. ``where`` is what the configuration says."""

    where: str
    bundle: LoadedBundle | None = None
    by_generator: dict[str, LoadedBundle] | None = None
    scorer: Scorer | None = None

    @property
    def bundles(self) -> list[LoadedBundle]:
        """All of them; none for a scorer."""
        return [self.bundle] if self.bundle is not None else list((self.by_generator or {}).values())


def open_candidate(where: str) -> CandidateDetector:
    """What a folder, or ``module:function``, names.

    Raises:
        FileNotFoundError: nothing of the kind.
        ValueError: it cannot be used; the message says why.
    """
    folder = Path(where)
    if (folder / LEAVE_ONE_OUT).is_file():
        return CandidateDetector(where, by_generator=_left_out(folder))
    if ":" in where and not folder.exists():
        return CandidateDetector(where, scorer=_scorer(where))
    if folder.is_dir() and not (folder / INDEX).is_file():
        raise FileNotFoundError(
            f"{folder} holds neither {INDEX} (a detector) nor {LEAVE_ONE_OUT} (a leave-one-out fit)"
        )
    return CandidateDetector(where, bundle=LoadedBundle(folder, load_detector(folder)))


def _left_out(folder: Path) -> dict[str, LoadedBundle]:
    try:
        index = json.loads((folder / LEAVE_ONE_OUT).read_text(encoding="utf-8"))
        names = {str(generator): str(name) for generator, name in index.items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / LEAVE_ONE_OUT} is damaged: {error}") from None
    found = {generator: LoadedBundle(folder / name, load_detector(folder / name)) for generator, name in names.items()}
    for generator, bundle in found.items():
        if generator in bundle.detector.info.training.generated:
            raise ValueError(f"{bundle.folder} was trained on {generator}, which it should have left out")
    return found


def _scorer(where: str) -> Scorer:
    module, _, name = where.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` has it
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ValueError(f"{where}: module {module!r} cannot be imported: {error}") from None
    except AttributeError:
        raise ValueError(f"{where}: module {module!r} has no {name!r}") from None
    if not callable(found):
        raise ValueError(f"{where}: {name!r} is no function of a list of crops")
    scorer: Scorer = found
    return scorer
