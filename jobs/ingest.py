"""Folder of images to a shard set: python jobs/ingest.py --config FILE source=FOLDER output=FOLDER"""

import sys

from blades_dist.config import IngestConfig
from blades_dist.data.ingest import ingest
from blades_dist.data.sources import SourceError, check_folder
from blades_dist.raylocal import cluster
from blades_dist.settings import parse


def main() -> int:
    config = parse(IngestConfig, "ingest")
    try:
        check_folder(config.source)  # a wrong folder is told before a cluster is started for it
        with cluster(config.ray):
            ingest(config)
    except SourceError as error:
        print(f"ingest: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
