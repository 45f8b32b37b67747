#!/usr/bin/env bash
# run.sh asan|tsan PYTHON: builds the package with sanitizers into build/KIND and runs the tests of native code and threads
# under them; fails when a test fails or anything is reported. PYTHON: of a venv with the packages that building and testing
# need. docs/sanitizers.md says more.
set -euo pipefail
cd "$(dirname "$0")/../.."
kind=$1 python=$2
out=$PWD/build/$kind
bin=$(cd "$(dirname "$python")" && pwd)
export PATH="$bin:$PATH"

case $kind in
  asan)
    sanitizers=address,undefined
    mistakes="heap_overflow(40) misaligned(1) overflow(1) leak(48)"
    settings=(-Csetup-args=-Dbounds_checks=true)
    libraries=(libasan.so libubsan.so)
    tests=(tests/native tests/protocol/test_{random_programs,state_machine}.py tests/contract
      tests/unit/bench/test_{mf,kge}_kernel.py tests/unit/test_{draws,framing,manager,sampling,sim,timing}.py)
    ;;
  tsan)
    sanitizers=thread
    mistakes="race(10000)"
    settings=()
    libraries=(libtsan.so)
    tests=(tests/native tests/contract)
    ;;
  *) echo "run.sh: $kind: choose asan or tsan" >&2; exit 2 ;;
esac

# -- build: into a venv that sees the packages of the other one, but neither its intentpm nor its editable installs ----------

if [ ! -e "$out/venv/.made" ]; then
  rm -rf "$out/venv"
  "$python" -m venv --without-pip "$out/venv"
  "$python" -c 'import sys; print(*(p for p in sys.path if p.endswith("site-packages")), sep="\n")' \
    > "$("$out/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth"
  touch "$out/venv/.made"
fi
started=$SECONDS
"$python" -m pip --disable-pip-version-check --python "$out/venv/bin/python" install -q --root-user-action=ignore --no-deps \
  --no-build-isolation "-Cbuild-dir=$out/build" -Csetup-args=-Dbuildtype=plain -Csetup-args=-Db_lundef=false \
  "-Csetup-args=-Db_sanitize=$sanitizers" "${settings[@]}" .
mkdir -p "$out/intentpm"
${CXX:-g++} -shared -fPIC -O1 -g -pthread "-fsanitize=$sanitizers" -o "$out/intentpm/planted.so" tools/sanitizers/planted.cpp
echo "$kind: built in $((SECONDS - started)) s"

# -- run ---------------------------------------------------------------------------------------------------------------------

preload=$(for library in "${libraries[@]}"; do ${CC:-gcc} "-print-file-name=$library"; done | tr '\n' ' ')

# sanitized REPORTS ARGUMENTS...: Python under the sanitizers, which write to REPORTS.
sanitized() {
  local reports=$1
  shift
  # PYTHONMALLOC: one allocation per object, so that each can be watched. exitcode: what counts is what reports.py finds.
  # UndefinedBehaviorSanitizer beside AddressSanitizer writes to standard error, whatever its log_path says.
  "${prefix[@]}" env LD_PRELOAD="$preload" PYTHONMALLOC=malloc OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 \
    ASAN_OPTIONS="log_path=$reports/asan detect_leaks=1 exitcode=0 stack_trace_format='    #%n %p %F %L (%m)'" \
    UBSAN_OPTIONS="log_path=$reports/asan suppressions=$PWD/tools/sanitizers/ubsan.supp print_stacktrace=1 exitcode=0" \
    TSAN_OPTIONS="log_path=$reports/tsan suppressions=$PWD/tools/sanitizers/tsan.supp history_size=4 exitcode=0" \
    "$out/venv/bin/python" "$@" 2>> "$reports/stderr"
}

# A ThreadSanitizer that does not know where this kernel may put mappings gives up at once, except without randomisation.
rm -rf "$out/planted" "$out/reports" "$out/probe"
mkdir -p "$out/planted" "$out/reports" "$out/probe"
prefix=()
if ! sanitized "$out/probe" -c pass; then
  prefix=(setarch -R)
  sanitized "$out/probe" -c pass || { cat "$out/probe/stderr"; echo "$kind: Python does not start under it here"; exit 1; }
fi

# What cannot find a planted defect proves nothing.
for mistake in $mistakes; do
  sanitized "$out/planted" -c "import ctypes; ctypes.CDLL('$out/intentpm/planted.so').$mistake" || true
done
"$out/venv/bin/python" tools/sanitizers/reports.py --planted "$kind" "$out/planted"

started=$SECONDS
status=0
sanitized "$out/reports" -m pytest -q --capture=sys -p no:cacheprovider -p no:benchmark -p no:faulthandler -k 'not ucx and not any_process' \
  ${PYTEST_FLAGS:-} "${tests[@]}" || status=$?
[ $status = 0 ] || cat "$out/reports/stderr"
echo "$kind: tested in $((SECONDS - started)) s"
"$out/venv/bin/python" tools/sanitizers/reports.py "$out/reports" || status=1
exit $status
