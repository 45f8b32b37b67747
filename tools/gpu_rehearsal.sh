#!/usr/bin/env bash
# tools/gpu_check.sh on a bare Python, without a network, on an emulated device: tools/gpu_rehearsal.sh WHEELS OUT [PYTHON]
# WHEELS: what `tools/gpu_wheels.sh WHEELS here` collected. PYTHON: whose version the wheels are for. Needs root, for a network
# namespace. Run again, it builds only what has changed: build/gpu-check. SLOWNESS: as there; REHEARSAL_PATH: where compilers are.
set -euo pipefail
wheels=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
python=${3:-python3}
cd "$(dirname "$0")/.."
bare=$PWD/build/gpu-check/bare
[ -x "$bare/bin/python" ] || "$python" -m venv "$bare"
# The caller's environment may know registries, and packages that the machine would lack.
exec env -i HOME="$HOME" PATH="${REHEARSAL_PATH:-/usr/bin:/bin:/usr/sbin:/sbin}" PYTHON="$bare/bin/python" SLOWNESS="${SLOWNESS:-1}" \
  unshare -n bash -c 'ip link set lo up && exec tools/gpu_check.sh "$@"' bash "$wheels" "$out" emulated
