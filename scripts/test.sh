#!/usr/bin/env bash
# All tests, quick ones first. Usage: scripts/test.sh BIN
set -euo pipefail
bin=$1
if ! command -v redis-server >/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing redis-server for the ledger's tests ..."
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq redis-server; } >/dev/null ||
      echo "redis-server could not be installed; its tests will say so and skip" >&2
  else
    echo "redis-server is not installed; its tests will say so and skip (Debian: apt-get install redis-server)" >&2
  fi
fi
# What needs no Ray on all cores, the long files first; what starts Ray or kills things, one after the other.
"$bin/pytest" tests/data tests/unit -n auto --dist loadfile
exec "$bin/pytest" tests/cluster tests/chaos --durations=25
