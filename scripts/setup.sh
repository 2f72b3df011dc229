#!/usr/bin/env bash
# Make the virtual environment. Usage: scripts/setup.sh PYTHON VENV
set -euo pipefail
python=$1 venv=$2
"$python" - <<'PY' || exit 1
import sys
if sys.version_info < (3, 11):
    sys.exit("hindcast: Python 3.11 or newer is needed, this is %d.%d; run: make PYTHON=/path/to/python3.11 ..." % sys.version_info[:2])
PY
free_kb=$(df -Pk . | awk 'NR==2 {print $4}')
if [ "$free_kb" -lt 4000000 ]; then
  echo "hindcast: 4 GB of free disk are needed here, $((free_kb / 1000000)) GB are free; free some or clone elsewhere" >&2
  exit 1
fi
echo "Setting up $venv (the first time takes a few minutes) ..."
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || {
  echo "hindcast: cannot make a virtual environment with $python; install its venv package (Debian: apt-get install python3-venv)" >&2
  exit 1
}
# No --quiet: the lines that name each package are the progress people see.
"$venv/bin/python" -m pip install --progress-bar off -c constraints.txt -e '.[dev]' \
  | awk '/^Collecting/ {print "  " $2; fflush()} /^Installing/ {print "  installing ..."; fflush()}'
touch "$venv/.installed"
