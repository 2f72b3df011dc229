"""`python -m hindcast` is the `hindcast` command."""

from hindcast.cli import main

main()
