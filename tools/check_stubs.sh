#!/usr/bin/env bash
# Checks each .pyi against the module that PYTHON imports: the build must be up to date. Called by `make lint`.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
"$python" tools/stage_package.py . build/lint/stage
mapfile -t modules < <(
  find foundation checkpoint transports gpu runtime launch testing bench -name '*.pyi' | sed 's|\.pyi$||; s|/|.|g; s|^|intentpm.|' | sort
)
# Disjoint bases: that nobody can inherit from two Cython classes is of no use to a reader of a stub.
MYPYPATH=build/lint/stage "$python" -m mypy.stubtest --mypy-config-file pyproject.toml \
  --allowlist tools/stubtest_allowlist.txt --ignore-disjoint-bases "${modules[@]}"
