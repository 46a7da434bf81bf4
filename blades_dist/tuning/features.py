"""Features of an encoder that trials look at: by the extraction job, and of manipulated photographs, both kept."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ray
import torch
from safetensors.numpy import load_file, save_file

from blades_dist.arithmetic import cuda
from blades_dist.config import ExtractConfig, ManipulateConfig, PretrainConfig
from blades_dist.data.read import read_split
from blades_dist.detect.extract import Request, extract, require_gpu
from blades_dist.distributed import World
from blades_dist.files import write_through
from blades_dist.models.export import encoder_digest, load_encoder
from blades_dist.tasks import task_set
from blades_dist.training.sample import prepare
from blades_dist.tuning.config import TEST, SweepConfig
from blades_dist.tuning.objective import TrialFeatures, area

FIT, HELD = "train", "val"
_STREAM = 3  # of the manipulation seed: 0 to 2 are the training job's


def faces_of(encoder: Path, config: SweepConfig, actors: int | None = None) -> TrialFeatures:
    """What trials see of an encoder: the train and the val split, and with a supervised objective AI faces.

    Raises:
        OSError, ValueError: as ``extract``.
    """
    shards, limit = config.pretrain.data.shards, config.objective.limit
    requests = [Request(encoder, shards, FIT, "", limit), Request(encoder, shards, HELD, "", limit)]
    if config.objective.kind == "supervised" and config.generated is not None:
        requests.append(Request(encoder, config.generated, config.generated_split, "", limit))
    fit, held, *labelled = extract(requests, extraction(config, actors), lambda _: None)
    other = manipulated(encoder, HELD, config)
    generated = {name: part for own in labelled for name, part in by_source(own.features, own.sources).items()}
    proxy = coarse_auc(encoder, held.features, other)
    return TrialFeatures(fit.features, held.features, other, proxy, generated)


def unseen(encoder: Path, config: SweepConfig) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Of the test split: photographs, what they are to be told from, and the calibration split's photographs.

    The second is AI faces by generator, or where none were given the manipulated photographs themselves.
    """
    shards = config.pretrain.data.shards
    requests = [Request(encoder, shards, TEST), Request(encoder, shards, "calibration")]
    if config.generated is not None:
        requests.append(Request(encoder, config.generated, TEST))
    real, calibration, *labelled = extract(requests, extraction(config), lambda _: None)
    if labelled:
        others = by_source(labelled[0].features, labelled[0].sources)
    else:
        others = {"manipulated photographs": manipulated(encoder, TEST, config)}
    return real.features, others, calibration.features


def extraction(config: SweepConfig, actors: int | None = None) -> ExtractConfig:
    """The configured extraction, kept in the sweep's own folder where nothing else is said."""
    own = config.fit.extract
    return own.model_copy(
        update={"cache": own.cache or config.folder / "features", "actors": own.actors if actors is None else actors}
    )


def by_source(features: np.ndarray, sources: Sequence[str]) -> dict[str, np.ndarray]:
    """Rows by generator, in the order of their names."""
    return {name: features[np.array(sources) == name] for name in sorted(set(sources))}


def manipulated(encoder: Path, split: str, config: SweepConfig) -> np.ndarray:
    """(n, D) features of a split's photographs after the reference manipulations; computed once, in one Ray task."""
    data, objective = config.pretrain.data, config.objective
    key = [encoder_digest(encoder), str(data.shards), split, objective.limit, config.seed, config.pretrain.loss.flash]
    name = hashlib.sha256(json.dumps([*key, objective.reference.model_dump()]).encode()).hexdigest()
    target = config.folder / "features" / "manipulated" / f"{name[:32]}.safetensors"
    if not target.is_file():
        gpu = config.fit.extract.gpu
        if gpu:
            require_gpu("fit.extract.gpu", gpu)
        # By name the default strategy: what runs in a Tune trial would otherwise have to fit into that trial's share.
        remote = _manipulated.options(num_cpus=1, num_gpus=gpu, scheduling_strategy="DEFAULT")
        found = ray.get(
            remote.remote(
                str(encoder),
                config.pretrain.model_dump(mode="json"),
                objective.reference.model_dump(),
                split,
                objective.limit,
                config.seed,
                config.fit.extract.batch_size,
                bool(gpu),
            )
        )
        write_through(target, lambda file: save_file({"features": found}, file))
    return load_file(target)["features"]


@ray.remote
def _manipulated(
    folder: str,
    pretrain: dict,
    reference: dict,
    split: str,
    limit: int | None,
    seed: int,
    batch_size: int,
    gpu: bool,
) -> np.ndarray:
    if not gpu:
        torch.set_num_threads(1)
    config, how = PretrainConfig.model_validate(pretrain), ManipulateConfig.model_validate(reference)
    encoder = load_encoder(Path(folder)).to(cuda() if gpu else torch.device("cpu"))
    tasks = task_set(flash=config.loss.flash)
    found = []
    batches = read_split(config.data.shards, split, encoder.info.image_size, limit, batch_size)
    for i, batch in enumerate(batches):
        images, landmarks, labels = (torch.from_numpy(batch[key]) for key in ("images", "landmarks", "labels"))
        sample = prepare(images, landmarks, labels, batch["ids"], tasks, how, (seed, _STREAM, i), World())
        found.append(encoder.features((sample.images * 255).round().clamp(0, 255).byte()).cpu().numpy())
    return np.concatenate(found)


def coarse_auc(encoder: Path, real: np.ndarray, other: np.ndarray) -> float:
    """AUC of the encoder's own coarse task between photographs and manipulated ones, from their features."""
    frozen = load_encoder(encoder)
    own = frozen.columns("face_coarse")
    sides = (frozen.logits(torch.from_numpy(rows))[:, own].double().numpy() for rows in (real, other))
    return area(*(logits[:, 0] - logits[:, 1] for logits in sides))
