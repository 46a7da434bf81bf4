"""A published checkpoint to a detector of this project: python jobs/import_checkpoint.py FILE output=DIR shards=SHARDS

Without shards of photographs only encoder and head are written, for jobs/fit_detector.py encoder=DIR/encoder.
"""

import logging
import sys

from blades_dist.config import ImportConfig
from blades_dist.settings import parse


def main() -> int:
    config = parse(ImportConfig, "import", description=__doc__, positional=("checkpoint",))
    from blades_dist.detect.imports.folder import save_import
    from blades_dist.detect.imports.read import read_import

    logging.basicConfig(level=logging.INFO, format="import: %(message)s")
    try:
        imported = read_import(config)
        save_import(imported, config.output)
    except (OSError, ValueError) as error:
        print(f"import_checkpoint: {error}", file=sys.stderr)
        return 2
    info = imported.encoder.info
    print(
        f"import: {config.checkpoint.name} as {imported.kind}: encoder of {info.embed_dim} features at "
        f"{info.image_size} pixels, head: {imported.head_kind or 'none, to be fitted'}; written to {config.output}"
    )
    return 0 if config.shards is None else _calibrate(config)


def _calibrate(config: ImportConfig) -> int:
    from blades_dist.detect.fit import calibrate_import, summary
    from blades_dist.raylocal import cluster

    def say(text: str) -> None:
        print(f"import: {text}", flush=True)

    try:
        with cluster(config.ray):
            info = calibrate_import(config, say)
    except (OSError, ValueError) as error:
        print(f"import_checkpoint: {error}", file=sys.stderr)
        return 2
    for line in summary(config.output / "detector", info):
        say(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
