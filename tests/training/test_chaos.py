"""Losses of workers, nodes, the trainer, the driver and of files: the run ends as an undisturbed one."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from blades_dist.models.export import load_encoder
from blades_dist.testing.chaos import DAMAGES, Disturbed, End, make_shards, plan, settings
from blades_dist.testing.hosts import SCRIPTS, Hosts, Job, hosts, wait_until
from blades_dist.training import checkpoint_io, sample

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 36, 3

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chaos")
    make_shards(folder)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Hosts]:
    with hosts(2) as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(folder: Path, cluster: Hosts) -> End:
    Job(cluster, settings(folder / "shards", folder, "whole", STEPS, EVERY), folder / "whole.log").finish()
    return End.of(folder / "whole")


# First: Ray holds what a killed controller had asked for back from elastic runs for three minutes.
def test_an_elastic_run_saves_before_its_node_goes_and_goes_on_with_less(
    folder: Path, cluster: Hosts, undisturbed: End
) -> None:
    """A preemption notice: a checkpoint within the grace time, then one worker instead of two."""
    values = settings(folder / "shards", folder, "elastic", STEPS, EVERY)
    values |= {"train.workers": "[1, 2]", "train.checkpoint_every": 1000, "train.resize_seconds": 1000}
    # After the loss Ray first tries a group on the node that is gone, for as long as this.
    patience = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30"}
    job = Job(cluster, values, folder / "elastic.log", patience)
    wait_until(lambda: "step 5/" in job.output or job.process.poll() is not None, "five steps")
    assert job.process.poll() is None, job.output[-6000:]
    with cluster.frozen("ray::RayTrainWorker") as workers:
        node = cluster.node_of(workers[0])
        assert node is not None
        command = ["drain-node", f"--address={cluster.environment['RAY_ADDRESS']}", f"--node-id={node.id}"]
        command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test"]
        command += ["--deadline-remaining-seconds=300"]
        subprocess.run([SCRIPTS / "ray", *command], check=True, env=cluster.environment, capture_output=True)
    saved = folder / "elastic" / checkpoint_io.FOLDER
    wait_until(lambda: checkpoint_io.saved(saved), "a checkpoint that no schedule asked for")
    cluster.kill(node)
    output = job.finish()
    cluster.add()
    assert "a node is about to be taken away" in output
    assert "resumed at step" in output and "with 1 workers" in output
    end = End.of(folder / "elastic")
    assert end.sequence == undisturbed.sequence
    assert end.furthest(undisturbed) < 1e-3


def test_a_run_survives_everything_and_ends_as_an_undisturbed_one(
    folder: Path, cluster: Hosts, undisturbed: End
) -> None:
    values = settings(folder / "shards", folder, "disturbed", STEPS, EVERY)
    run = Disturbed(cluster, values, folder / "disturbed.log", seed=1)
    # The next test kills the driver; benchmarks/chaos.py takes every kind, and ten at random.
    for kind, step in plan(("node", "flipped bit", "trainer"), STEPS, EVERY, seed=5):
        found = run.disturb(kind, step)
        assert found.resumed >= found.intact, f"{found}: more was lost than the steps since the last checkpoint"
        assert kind not in DAMAGES or "is damaged and not used" in run.job.output
    run.job.finish()
    end = End.of(folder / "disturbed")
    assert end.sequence == undisturbed.sequence and len(end.sequence) == STEPS
    assert end.history == undisturbed.history, "lambda's trajectory, bitwise"
    assert end.same_bits(undisturbed)


def test_the_number_of_workers_may_change_between_starts(folder: Path, cluster: Hosts, undisturbed: End) -> None:
    values = settings(folder / "shards", folder, "changed", STEPS, EVERY)
    run = Disturbed(cluster, values, folder / "changed.log", seed=2)
    run.disturb("driver", 10, **{"train.workers": 1, "train.batch_size": 12})
    assert "with 1 workers" in run.job.finish()
    end = End.of(folder / "changed")
    assert end.sequence == undisturbed.sequence
    assert 0 < end.furthest(undisturbed) < 1e-3


def test_a_submitted_job_stops_at_a_checkpoint_and_goes_on(folder: Path, cluster: Hosts, undisturbed: End) -> None:
    """``ray job submit``, ``logs``, ``stop``, and the same submission again."""
    values = settings(folder / "shards", folder, "submitted", STEPS, EVERY, **{"train.checkpoint_every": 1000})

    def ray(*words: str) -> str:
        done = subprocess.run(
            [SCRIPTS / "ray", "job", *words], env=cluster.environment, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(name: str, *options: str) -> str:
        job = ["python", "jobs/pretrain.py", *(f"{key}={value}" for key, value in values.items())]
        return ray("submit", f"--submission-id={name}", "--working-dir=.", *options, "--", *job)

    submit("first", "--no-wait")
    lines = folder / "submitted" / sample.FOLDER / "rank-00000.jsonl"
    wait_until(lambda: lines.is_file() and len(lines.read_text().splitlines()) > 5, "some steps")
    with cluster.frozen("ray::RayTrainWorker"):
        with pytest.raises(AssertionError, match="is being driven by another process"):
            submit("twin")
        ray("stop", "--no-wait", "first")
    wait_until(lambda: "was stopped" in ray("status", "first"), "the stop", every=1)
    (left,) = checkpoint_io.saved(folder / "submitted" / checkpoint_io.FOLDER)
    assert 4 <= checkpoint_io.step_of(left) < STEPS and checkpoint_io.verify(left)
    assert "the same command goes on from there" in ray("logs", "first")
    assert f"resumed at step {checkpoint_io.step_of(left)}/{STEPS}" in submit("second")
    end = End.of(folder / "submitted")
    assert end.history == undisturbed.history and end.same_bits(undisturbed)

    # What a finished run has left, and that it is not run again.
    run = folder / "submitted"
    for name in ("config.yaml", "weights.png", "validation.json", "tensorboard"):
        assert (run / name).exists(), name
    assert load_encoder(run / "encoder").info.provenance["steps"] == STEPS
    assert json.loads((run / "validation.json").read_text())["coarse_loss"] > 0
    assert not list(run.rglob("*.pt")) and not list(run.rglob("*.pkl"))
    assert "is finished" in submit("third")
