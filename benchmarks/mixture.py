"""Time and memory of fitting the one-class mixture to as many features as a large collection has.

python benchmarks/mixture.py                                   130,000 x 768, 10 full Gaussians: prints the table
python benchmarks/mixture.py --rows 5000 --dimensions 64       does it work
python benchmarks/mixture.py --write                           also writes benchmarks/results/mixture.md
python benchmarks/mixture.py --sweep --rows 20000 --dimensions 64   sizes 1 to 20 side by side in Ray tasks; --write:
                                                               benchmarks/results/mixture_sweep.md

The features are synthetic unit vectors in soft clusters: a row is a mean of 30 random centres, most of its weight on
a few of them (softmax of 3 x normal), plus Gaussian noise whose standard deviation falls from 0.3 to 0.03 of a
centre's along the axes, as features of an encoder concentrate on few directions. Clusters that run into each other
make EM work; it is done in two iterations where they are apart.
"""

import argparse
import contextlib
import math
import os
import platform
import resource
import threading
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
from device import cpu_name
from scipy.special import softmax

from blades_dist.config import MixtureConfig, RayConfig
from blades_dist.detect.fitting import in_ray_tasks
from blades_dist.detect.heads.mixture import MixtureFit, choose, fit_mixture, refit
from blades_dist.raylocal import cluster

CLUSTERS = 30
GIB = 2**30


def clustered(rows: int, dimensions: int, seed: int = 0) -> np.ndarray:
    """(rows, dimensions) float32 unit vectors as described above."""
    random = np.random.default_rng(seed)
    centres, spread = random.normal(size=(CLUSTERS, dimensions)), np.linspace(0.3, 0.03, dimensions)
    found = np.empty((rows, dimensions), np.float32)
    for begin in range(0, rows, 4096):
        n = min(4096, rows - begin)
        weights = softmax(3 * random.normal(size=(n, CLUSTERS)), axis=1)
        found[begin : begin + n] = weights @ centres + random.normal(size=(n, dimensions)) * spread
    return found / np.linalg.norm(found, axis=1, keepdims=True)


class Peak:
    """Largest resident memory of this process while the block ran, in bytes, sampled every 20 ms."""

    def __enter__(self) -> "Peak":
        self.process, self.done = psutil.Process(), threading.Event()
        self.before = self.bytes = self.process.memory_info().rss
        self.sampler = threading.Thread(target=self._sample)
        self.sampler.start()
        return self

    def _sample(self) -> None:
        while not self.done.wait(0.02):
            self.bytes = max(self.bytes, self.process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.sampler.join()


def table(options: argparse.Namespace) -> str:
    """Markdown: one row for the fit that is compared with others, one for the refit on all rows."""
    config = MixtureConfig(n_components=options.components, covariance_type="full", n_init=options.starts)
    features = clustered(options.rows, options.dimensions)
    lines = [
        f"# Mixture of {options.components} full Gaussians on {options.rows} x {options.dimensions} features",
        "",
        __doc__.split("\n\n")[-1].strip(),
        "",
        f"EM in float64 with scikit-learn, {options.starts} start(s), each begun by k-means; the features themselves "
        f"are {features.nbytes / GIB:.2f} GiB of float32. `fit_mixture` holds a share of {config.held_out:g} out, "
        "`refit` carries its result on with all rows. Memory is this process's peak; in brackets what the step added.",
        "",
        f"- device: {cpu_name()}, {os.cpu_count()} cores, {options.threads} threads, "
        f"load {os.getloadavg()[0]:.1f} before (others may have been at work)",
        f"- Python {platform.python_version()}, NumPy {np.__version__}, scikit-learn {version('scikit-learn')}",
        "",
        "| step | rows | wall, s | CPU, s | iterations | converged | peak memory, GiB | log-likelihood, nats |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def row(name: str, fit: MixtureFit, seconds: float, cpu: float, peak: Peak) -> str:
        memory = f"{peak.bytes / GIB:.2f} ({(peak.bytes - peak.before) / GIB:.2f})"
        done = "yes" if fit.converged else "no"
        return (
            f"| {name} | {fit.rows} | {seconds:.1f} | {cpu:.1f} | {fit.iterations} | {done} | {memory} | "
            f"{fit.log_likelihood:.3f} |"
        )

    begin, cpu = time.perf_counter(), time.process_time()
    with Peak() as peak:
        fit = fit_mixture(features, config, 0, options.components, options.threads)
    lines.append(row("`fit_mixture`", fit, time.perf_counter() - begin, time.process_time() - cpu, peak))
    begin, cpu = time.perf_counter(), time.process_time()
    with Peak() as peak:
        final = refit(features, fit, config, options.threads)
    lines.append(row("`refit`", final, time.perf_counter() - begin, time.process_time() - cpu, peak))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    lines += ["", f"Held-out log-likelihood {fit.held_out_log_likelihood:.3f} nats a face; the system's own count of "]
    lines[-1] += f"peak memory, import and making of the features included: {most:.2f} GiB."
    assert math.isfinite(final.bic)
    return "\n".join(lines) + "\n"


def sweep(options: argparse.Namespace) -> str:
    """Markdown: how busy the cores were while twenty sizes were fitted, and what each size gave."""
    features = clustered(options.rows, options.dimensions)
    config = MixtureConfig(covariance_type="full", n_init=options.starts)
    with cluster(RayConfig()):
        side_by_side(features[:2000], [1], config)  # workers have started and imported what they need
        begin, spent = time.perf_counter(), _worked()
        found = side_by_side(features, list(range(20, 0, -1)), config)[::-1]
        seconds, busy = time.perf_counter() - begin, _worked() - spent
    cores = os.cpu_count() or 1
    chosen = choose(found, "held_out").components
    lines = [
        f"# Sizes 1 to 20 of a full mixture on {options.rows} x {options.dimensions} features",
        "",
        f"One Ray task of one core a size (`detect.fitting.in_ray_tasks`), {options.starts} starts each: {seconds:.0f} "
        f"s in which the workers used {busy:.0f} s of CPU, {busy / seconds:.2f} of {cores} cores. The held-out "
        f"likelihood chooses {chosen} Gaussians. Features as in mixture.md.",
        "",
        f"- device: {cpu_name()}, {cores} cores; Python {platform.python_version()}, scikit-learn "
        f"{version('scikit-learn')}, ray {version('ray')}",
        "",
        "| Gaussians | held-out log-likelihood, nats | BIC | iterations |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {fit.components} | {fit.held_out_log_likelihood:.3f} | {fit.bic:.6g} | {fit.iterations} |" for fit in found
    ]
    return "\n".join(lines) + "\n"


def side_by_side(features: np.ndarray, sizes: list[int], config: MixtureConfig) -> list[MixtureFit]:
    """One fit a size, as the fit job runs them."""

    def one(rows: np.ndarray, size: int, threads: int | None) -> MixtureFit:
        return fit_mixture(rows, config, 0, size, threads)

    return in_ray_tasks(one, features, sizes, None, lambda fit: print(fit.line()))


def _worked() -> float:
    """Seconds of CPU that the local cluster's processes have used, those of workers that are still there."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            used = process.cpu_times()
            total += used.user + used.system
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=130_000)
    parser.add_argument("--dimensions", type=int, default=768)
    parser.add_argument("--components", type=int, default=10)
    parser.add_argument("--starts", type=int, default=MixtureConfig().n_init)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--write", action="store_true", help="also write the table to benchmarks/results")
    parser.add_argument("--sweep", action="store_true", help="sizes 1 to 20 instead of one")
    options = parser.parse_args()
    text = sweep(options) if options.sweep else table(options)
    print(text)
    if options.write:
        target = Path(__file__).parent / "results" / ("mixture_sweep.md" if options.sweep else "mixture.md")
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)


if __name__ == "__main__":
    main()
