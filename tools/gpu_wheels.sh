#!/usr/bin/env bash
# Collects the wheels that tools/gpu_check.sh installs on a machine without a network: tools/gpu_wheels.sh FOLDER [PYTHON]
# PYTHON: the version there (3.12). With "here", all that the build and the tests need, for the Python of PIP_PYTHON: for a rehearsal
# on a bare one.
set -euo pipefail
folder=$1
version=${2:-3.12}
pip=("${PIP_PYTHON:-python3}" -m pip --disable-pip-version-check download -q --only-binary=:all: -d "$folder")
# What an image with CUDA, PyTorch, CuPy, Cython, meson and ninja may lack.
lacking=(
  'meson-python>=0.17,<0.23' pyproject-metadata packaging 'Cython>=3.3,<3.4' 'meson>=1.5,<2' 'ninja>=1.11' 'numpy>=2,<3'
  'ml_dtypes>=0.4,<1' 'click>=8.1,<9' 'pytest>=8,<10' 'pytest-timeout>=2.3,<3' iniconfig pluggy pygments
)
mkdir -p "$folder"
if [ "$version" = here ]; then
  "${pip[@]}" "${lacking[@]}" 'libucx-cu12>=1.17,<2'
else
  platforms=()
  for glibc in 28 27 24 17 12; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
  "${pip[@]}" --no-deps --python-version "$version" --implementation cp "${platforms[@]}" --platform manylinux2014_x86_64 \
    "${lacking[@]}" 'libucx-cu13>=1.17,<2'
fi
du -sh "$folder"
