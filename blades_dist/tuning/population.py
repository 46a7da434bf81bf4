"""Population-based training in generations (Jaderberg et al. 2017, arXiv 1711.09846). No Ray here.

All members train to the same step. Then the worst take the weights of the best and a configuration near theirs, and
all go on. In generations, not whenever one member happens to be ready: what is copied follows from the seed and the
read-outs alone, so a sweep that was killed goes on as it would have.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blades_dist.tuning.config import EncoderSearch


@dataclass(frozen=True)
class Member:
    """A configuration, the ``run`` that trained it, and the run's last read-out; None where it has failed."""

    values: dict[str, Any]
    run: str
    value: float | None


def first_generation(search: EncoderSearch, seed: int) -> list[dict[str, Any]]:
    """Configurations at random."""
    own = random.Random(f"{seed}-0")
    return [{key: space.draw(own) for key, space in search.space.items()} for _ in range(search.candidates)]


def next_generation(
    members: Sequence[Member], search: EncoderSearch, seed: int, generation: int
) -> list[tuple[dict[str, Any], str]]:
    """For every member what it trains with next, and the run that it takes the weights of.

    Failed members are the worst. Where all have failed there is no next generation.
    """
    own = random.Random(f"{seed}-{generation}")
    alive = [i for i, member in enumerate(members) if member.value is not None]
    if not alive:
        return []
    count = max(1, round(search.exploit * len(members)))
    order = sorted(alive, key=lambda i: -float(members[i].value or 0.0))
    best = order[:count]
    worst = {i for i in order[len(order) - count :] if i not in best}
    worst |= {i for i in range(len(members)) if i not in alive}
    found = []
    for i, member in enumerate(members):
        if i not in worst:
            found.append((member.values, member.run))
            continue
        model = members[own.choice(best)]
        values = {
            key: space.draw(own) if own.random() < search.resample else space.perturb(model.values[key], own)
            for key, space in search.space.items()
        }
        found.append((values, model.run))
    return found
