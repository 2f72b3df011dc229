#!/usr/bin/env bash
# An environment of their own for what the benchmarks compare with, so that it never constrains ours. Usage: scripts/peers.sh PYTHON VENV
set -euo pipefail
python=$1 venv=$2
"$python" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check numpy pyarrow scann xgboost-cpu orjson hnswlib faiss-cpu
# Each of these may be refused by a platform; the benchmark then says that it was left out.
for one in bentoml feast; do
  "$venv/bin/pip" install --quiet --disable-pip-version-check "$one" || echo "peers: $one could not be installed"
done
"$venv/bin/pip" list --format=freeze --disable-pip-version-check > "$venv/versions.txt"
# RLlib is part of Ray, which the others would pin down: an environment of its own, with our version of Ray.
ray=$(sed -n 's/^ray==//p' constraints.txt)
"$python" -m venv "$venv-rllib"
"$venv-rllib/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt "ray[rllib,data]==$ray"
