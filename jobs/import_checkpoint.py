"""A published checkpoint to an encoder (and head) of this project: python jobs/import_checkpoint.py FILE output=DIR."""

import logging
import sys

from blades_dist.config import ImportConfig
from blades_dist.settings import parse


def main() -> int:
    config = parse(ImportConfig, "import", _with_file(sys.argv[1:]), __doc__)
    from blades_dist.models.imports import read_import, save_import  # torch loads after --help and config errors

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
    return 0


def _with_file(arguments: list[str]) -> list[str]:
    """The first argument may be the file itself, for ``checkpoint=FILE``."""
    if arguments and not arguments[0].startswith("-") and "=" not in arguments[0]:
        return [f"checkpoint={arguments[0]}", *arguments[1:]]
    return arguments


if __name__ == "__main__":
    sys.exit(main())
