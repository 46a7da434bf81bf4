"""A collection of photographs to a shard set: python jobs/ingest.py --config FILE source=FOLDER output=FOLDER

--inspect FILE   what is understood of one file, and whether it would be taken; no cluster, nothing written
--verify         checks the set in output: every shard's sha-256, every count
--report         writes report.html about the set in output, after the ingest
"""

import sys
from pathlib import Path

from blades_dist.config import IngestConfig
from blades_dist.settings import parse

FLAGS = ("--inspect", "--verify", "--report")


def main() -> int:
    arguments = sys.argv[1:]
    if "--inspect" in arguments:
        return _inspect(arguments)
    wanted = {flag: flag in arguments for flag in FLAGS}
    config = parse(IngestConfig, "ingest", [item for item in arguments if item not in FLAGS], __doc__)
    try:
        if wanted["--verify"]:
            return _verify(config.output)
        _ingest(config)
        if wanted["--report"]:
            from blades_dist.data.report import write_report

            print(f"ingest: report: {write_report(config.output, sources=config.source)}")
    except (OSError, ValueError) as error:  # a source, a model file or a set that cannot be used
        print(f"ingest: {error}", file=sys.stderr)
        return 2
    return 0


def _ingest(config: IngestConfig) -> None:
    from blades_dist.data.ingest import ingest
    from blades_dist.data.sources.factory import settled
    from blades_dist.raylocal import cluster

    config = settled(config)  # errors come before a cluster is started
    with cluster(config.ray):
        ingest(config)


def _verify(output: Path) -> int:
    from blades_dist.data.shards import verify

    problems = verify(output)
    for problem in problems:
        print(f"ingest: {problem}", file=sys.stderr)
    told = f"{len(problems)} problems" if problems else "every shard and count is as the manifest says"
    print(f"ingest: {output}: {told}")
    return 1 if problems else 0


def _inspect(arguments: list[str]) -> int:
    from blades_dist.data.explain import inspect_file
    from blades_dist.data.sources.folder import annotations_beside

    place = arguments.index("--inspect")
    file, rest = Path(*arguments[place + 1 : place + 2]), arguments[:place] + arguments[place + 2 :]
    config = parse(IngestConfig, "ingest", [*rest, f"source={file.parent}", "output=."], __doc__)
    try:
        print(inspect_file(file, config, annotations_beside(file)).text())
    except (OSError, RuntimeError, ValueError) as error:  # no file, a locator that cannot be used, a broken sidecar
        print(f"ingest: {file}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
