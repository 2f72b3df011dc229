#!/usr/bin/env bash
# Write constraints.txt from the environment that passed the tests: names and versions, nothing else.
set -euo pipefail
{
  echo "# Every version this project is tested with. Made by scripts/constraints.sh; install with: pip install -c constraints.txt -e '.[dev]'"
  .venv/bin/python -m pip list --format=freeze --exclude-editable --exclude pip --exclude setuptools --exclude wheel | sort -f
} > constraints.txt
