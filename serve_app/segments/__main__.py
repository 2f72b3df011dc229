"""One refresh in a process of its own, at low priority: what a running server starts. ``python -m serve_app.segments DATA``.

The Redis of a ledger is taken from HINDCAST_LEDGER__REDIS_URL, so that its password is in no process list. Exit code 0:
published, or nothing to do; 3: another refresh is under way; 2: an error, in one line on stderr.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from serve_app.clock import now_us
from serve_app.errors import HindcastError, NotReady
from serve_app.segments.refresh import refresh_segments

_BUSY = 3


def _main(data: Path) -> int:
    os.nice(10)
    try:
        redis_url = os.environ.get("HINDCAST_LEDGER__REDIS_URL")
        manifest = refresh_segments(data, now=now_us(), redis_url=redis_url, wait=False)
    except NotReady as error:
        sys.stderr.write(f"{error}\n")
        return _BUSY
    except HindcastError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if manifest is not None:
        sys.stdout.write(f"{len(manifest.segments)} segments over {manifest.population} users\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))
