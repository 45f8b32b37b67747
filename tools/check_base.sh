#!/usr/bin/env bash
# check_base.sh PYTHON: says what the machine lacks before anything is built, and what to install.
set -u
python=$1
missing=0

need() {
  echo "missing: $1. On Debian: apt-get install $2" >&2
  missing=1
}

if ! command -v "$python" > /dev/null; then
  need "$python" "python3 python3-venv python3-dev"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  need "Python 3.11 or newer ($python is $("$python" -V 2>&1); set PYTHON=...)" "python3.11 or newer"
else
  "$python" -c 'import ensurepip, venv' 2> /dev/null || need "Python's venv module" python3-venv
  "$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
    need "Python's C headers" python3-dev
fi
command -v cc > /dev/null || command -v gcc > /dev/null || need "a C compiler" gcc
command -v c++ > /dev/null || command -v g++ > /dev/null || need "a C++ compiler (C++20)" g++
exit $missing
