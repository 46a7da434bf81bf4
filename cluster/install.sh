#!/bin/sh
# Installs the built wheel with the versions of constraints.txt:  sh install.sh PYTHON FOLDER cpu|cuda
# FOLDER is what `make wheel` leaves in dist/. One way for hosts and images; the steps are those of the Makefile.
set -eu
python=$1 folder=$2 variant=$3
case $variant in
    cpu) extras="" ;;
    cuda) extras="[gpu]" ;;
    *) echo "install.sh: the variant is cpu or cuda, not '$variant'" >&2 && exit 2 ;;
esac
# Folders that are copied again and again may hold earlier versions: the newest is meant.
wheel=$(find "$folder" -maxdepth 1 -name 'blades_dist-*.whl' -exec ls -t {} + | head -n 1)
if [ -z "$wheel" ]; then
    echo "install.sh: no wheel in $folder; run 'make wheel' first" >&2 && exit 2
fi
install() { "$python" -m pip install --quiet --disable-pip-version-check --constraint "$folder/constraints.txt" "$@"; }

# DeepSpeed's build asks torch for its version, so torch comes first, and is not looked for in a fresh environment.
install setuptools wheel ninja torch numpy
DS_BUILD_OPS=0 install --no-build-isolation deepspeed
install "$wheel$extras"
# The same version built again: pip would think that it has it.
install --no-deps --force-reinstall "$wheel"
"$python" -c "
import pathlib, sys, sysconfig, torch
if sys.argv[1] == 'cuda' and torch.version.cuda is None:
    sys.exit('install.sh: variant cuda, but pip found a torch without CUDA; look at the index that pip is set up with')
if sys.argv[1] == 'cuda' and not pathlib.Path(sysconfig.get_paths()['include'], 'Python.h').is_file():
    print('install.sh: Python.h is missing (python3-dev), so Triton cannot build its launcher: losses take the torch path')
print(f'installed; torch {torch.__version__}')
" "$variant"
