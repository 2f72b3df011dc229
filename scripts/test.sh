#!/usr/bin/env bash
# All tests but those marked `long`, quick ones first. Usage: scripts/test.sh BIN
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
# A small world and its release, once for all tests that only read them.
demo=$(mktemp -d)
trap 'rm -rf "$demo"' EXIT
"$bin/hindcast" world --users 400 --items 300 --days 10 --seed 7 --data "$demo/data" >/dev/null
"$bin/hindcast" build --local --promote --data "$demo/data" >/dev/null
export HINDCAST_DEMO_RELEASE="$demo/data"
# What needs no Ray on all cores, the long files first; what starts Ray one after the other.
"$bin/pytest" tests/data tests/chaos tests/cluster tests/unit -m "not ray and not long" -n auto --dist loadfile --durations=25 -rs
"$bin/pytest" tests/cluster tests/chaos -m "ray and not long" --durations=30 -rs
