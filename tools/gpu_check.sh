#!/usr/bin/env bash
# On a GPU machine without a network: builds intentpm, runs the tests and benches that need the GPU, and writes OUT/device.json
# and OUT/device.md. Under 8 minutes, or it says which step was too slow. docs/gpu.md says how to prepare it.
#   tools/gpu_check.sh WHEELS OUT [DEVICE]
# WHEELS: what tools/gpu_wheels.sh collected. DEVICE: cuda, or emulated for a rehearsal. Variables: PYTHON, the one to use;
# SLOWNESS, how many times as long as 8 minutes it may take (1). Run again, it builds only what has changed.
set -euo pipefail
wheels=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
device=${3:-cuda}
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
site=$PWD/build/gpu-check/site
slowness=${SLOWNESS:-1}
log=$out/log.txt
: > "$log"
export PYTHONPATH=$site PATH=$site/bin:$(dirname "$(command -v "$python")"):$PATH PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1
export PYTHONDONTWRITEBYTECODE=1

step() {  # step SECONDS NAME COMMAND...: its output goes to the log, its time to the screen; fails as the command does
  local limit=$(($1 * slowness)) name=$2 began=$SECONDS status=0 left=$((460 * slowness - SECONDS))
  shift 2
  [ $left -gt $limit ] || limit=$((left > 5 ? left : 5))  # enough to say what is wrong
  echo "== $name" >> "$log"
  timeout "$limit" "$@" >> "$log" 2>&1 || status=$?
  echo "$name: $((SECONDS - began)) s$([ $status = 0 ] || echo ", FAILED with $status")"
  [ $status = 0 ] || tail -40 "$log"
  return $status
}

mkdir -p "$site"
rm -rf "$site"/intentpm "$site"/intentpm-*
# Only what this Python lacks, or has in a version that the build cannot use: the machine's own packages fit its driver.
missing=$("$python" - "$wheels" << 'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
for wheel in sorted(Path(sys.argv[1]).glob("*.whl")):
    name, found = wheel.name.split("-")[:2]
    try:
        if name != "cython" or version(name).split(".")[:2] == found.split(".")[:2]:
            version(name)
            continue
    except PackageNotFoundError:
        pass
    print(wheel)
PYTHON
)
pip=("$python" -m pip install -q --no-index --no-deps --no-cache-dir --no-compile --target "$site")
# shellcheck disable=SC2086
[ -z "$missing" ] || step 120 "carried wheels" "${pip[@]}" $missing
step 330 build "${pip[@]}" --no-build-isolation --config-settings=build-dir=build/gpu-check/build .

failed=0
chosen=$([ "$device" = cuda ] && echo gpu || echo "not gpu")
suites=(tests/contract/test_storage.py tests/unit/gpu tests/unit/device_workers)
"$python" -c "import torch" 2>> "$log" && suites+=(tests/unit/pytorch/test_on_device.py) || echo "tests with PyTorch: it is not here"
step 120 tests "$python" -m pytest -q -p no:cacheprovider -m "$chosen" --junitxml="$out/tests.xml" "${suites[@]}" || failed=$?
passed=$("$python" -c "
import sys, xml.etree.ElementTree as tree
suite = tree.parse(sys.argv[1]).getroot().find('testsuite')
print(', '.join(f'{suite.get(name)} {name}' for name in ('tests', 'failures', 'errors', 'skipped')))" "$out/tests.xml" || echo "did not run")
step 150 bench "$python" -c "from intentpm.bench.scenarios.device_cli import device; device()" \
  --device "$device" --out "$out/device" --fact "tests=$passed" || failed=$?
[ $failed = 0 ] && cat "$out/device.md"
echo "all: $SECONDS s"
exit $failed
