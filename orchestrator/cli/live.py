"""`sweep watch` and `sweep serve`: sweeps live, in the terminal and as pages in a browser."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.output import add_store, add_sweep, no_overrides
from orchestrator.core.settings import split_store
from orchestrator.errors import InfrastructureError, SweepError, UserError, one_line, words_of
from orchestrator.registry import require
from orchestrator.serving import server

if TYPE_CHECKING:
    from orchestrator.api.overview import Watched


COLOURLESS = ("dumb", "unknown", "vt100", "vt102", "vt220")
"""Terminals that have no colours, by TERM; those whose name ends in ``-m`` or ``-mono`` have none either."""


def configure_watch(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser, only=True, json=False)
    parser.add_argument(
        "--rows",
        action="append",
        default=[],
        metavar="AXIS",
        help="an axis for the rows of the grid, the others are columns; repeats; default: by their sizes",
    )
    parser.add_argument(
        "--interval", type=float, default=2.0, metavar="S", help="seconds between two looks, at least (2)"
    )
    add_store(parser)


def run_watch(args: argparse.Namespace) -> int:
    """Show the sweep until the user quits. Nothing is written but the requests that the user confirms."""
    if not 0.2 <= args.interval <= 3600:
        raise UserError(f"--interval {args.interval:g}", allowed="0.2 to 3600 seconds")
    require("watch", what="sweep watch")
    from orchestrator.api.overview import Watched

    watched = Watched(args.sweep, no_overrides(args.words), args.rows)
    # Wrong selectors are an error at the start; those that are typed later are refused on the screen.
    watched.view.select(args.only)
    # Textual draws on standard error.
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        fix = f"sweep status {args.sweep}, or sweep events {args.sweep} --follow"
        raise UserError("watch needs a terminal", fix=fix)
    # Textual reads this at the start, and then leaves all colours out.
    term = os.environ.get("TERM", "")
    if term in COLOURLESS or term.endswith(("-m", "-mono")):
        os.environ["NO_COLOR"] = "1"
    from orchestrator.watching.app import WatchApp

    app = WatchApp(watched, args.only, args.interval)
    app.run()
    if app.broken is not None:
        raise app.broken
    return 3 if app.return_code else 0


LOOPBACK = "127.0.0.1"

OPENING_S = 1.0
"""Longest wait for the sweeps before the address is printed, in seconds."""

SHORTEST_S = 1.0
"""Shortest time between two writings of a file, in seconds."""


def configure_serve(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "sweeps",
        nargs="+",
        metavar="SWEEP",
        help="names or paths, with @k for revision k; also store.url=FOLDER",
    )
    parser.add_argument("--port", type=int, default=None, metavar="N", help="default: a free one")
    parser.add_argument("--host", default=None, metavar="ADDRESS", help=f"default: {LOOPBACK}")
    parser.add_argument(
        "--beyond-loopback",
        action="store_true",
        help="allow a --host that other machines reach, by plain HTTP",
    )
    parser.add_argument(
        "--token-env",
        metavar="NAME",
        help="take the token from this environment variable; default: a new one",
    )
    parser.add_argument(
        "--file", type=Path, metavar="PAGE", help="write the grid as one HTML file instead of serving it"
    )
    parser.add_argument(
        "--every", type=float, metavar="S", help="with --file: write it again every S seconds"
    )


def run_serve(args: argparse.Namespace) -> int:
    """Serve the pages until a signal comes, or write the file."""
    with server.ending_quietly():
        url, words = split_store(args.sweeps)
        words = list(dict.fromkeys(words))
        if not words:
            raise UserError("no sweep is named", fix="sweep list")
        if args.file is not None:
            return _write(args, words, url)
        if args.every is not None:
            raise UserError("--every is of --file; the pages of a server renew themselves")
        require("serve", what="sweep serve without --file")
        return _serve(args, words, url)


def _serve(args: argparse.Namespace, words: Sequence[str], url: str | None) -> int:
    token = server.token_of(args.token_env)
    host = args.host or LOOPBACK
    listening = server.listen(host, args.port or 0, beyond=args.beyond_loopback)
    opening = _Opening(words, url)
    opening.wait(OPENING_S)
    port = listening.getsockname()[1]
    named = f"[{host}]" if ":" in host else host
    # The address is printed before the server's libraries are imported, and before a large sweep that was
    # never launched is composed. Until then, connections wait.
    print(f"http://{named}:{port}/?token={token}", flush=True)
    if not server.is_loopback(host):
        print(
            f"warning: other machines reach {host}:{port}, and the token travels unencrypted", file=sys.stderr
        )
    watched = opening.wait()
    assert watched is not None  # without a limit, it waits until they are open
    titles = ", ".join(each.view.title for each in watched)
    print(f"serving {titles}, read only; Ctrl-C ends it", file=sys.stderr, flush=True)
    from orchestrator.serving.app import application  # slow imports
    from orchestrator.serving.site import Served

    served = [Served(each) for each in watched]
    for each in served:
        each.live.get(wait_s=0.0)  # the first look goes on while the server starts
    pages = application({each.name: each for each in served})
    names = () if server.is_loopback(host) else (host, socket.gethostname(), socket.getfqdn())
    server.run(server.Guard(pages, token, port, names), listening)
    return 0


class _Opening:
    """Opens sweeps in a thread, because composing one may take longer than the address may be waited for.

    Args:
        words: the sweeps.
        url: of the store.
    """

    def __init__(self, words: Sequence[str], url: str | None) -> None:
        self._found: list[Watched] | BaseException | None = None

        def run() -> None:
            try:
                self._found = _open(words, url)
            except BaseException as error:  # noqa: BLE001 - raised again in `wait`
                self._found = error

        self._thread = threading.Thread(target=run, name="opening", daemon=True)
        self._thread.start()

    def wait(self, limit_s: float | None = None) -> list[Watched] | None:
        """Return the sweeps; None if they are not open after `limit_s` seconds.

        Raises:
            SweepError: one of them cannot be opened.
        """
        self._thread.join(limit_s)
        if isinstance(self._found, BaseException):
            raise self._found
        return self._found


def _open(words: Sequence[str], url: str | None) -> list[Watched]:
    """Return the sweeps that are named.

    Raises:
        UserError: one of them does not exist, or two of them have one name.
    """
    from orchestrator.api.overview import Watched

    found = [Watched(word, url) for word in words]
    names = [each.view.sweep.name for each in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{name} is named twice", allowed="one revision of each sweep")
    return found


def _write(args: argparse.Namespace, words: Sequence[str], url: str | None) -> int:
    """Write the grid as one file, once or again and again."""
    for name in ("port", "host", "token_env"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is of a server, not of --file")
    # A link stays, and what it leads to is replaced.
    try:
        path: Path = args.file.resolve()
    except RuntimeError as error:  # links in a circle
        raise UserError(str(error), where=f"--file {args.file}") from error
    if not path.parent.is_dir():
        raise UserError(f"no folder {path.parent}", where=f"--file {args.file}")
    if path.is_dir():
        raise UserError(f"{path} is a folder", where=f"--file {args.file}")
    if path.exists() and not path.is_file():
        # Such as /dev/stdout: it would be replaced, for all users of the machine.
        raise UserError(f"{path} is no regular file", where=f"--file {args.file}")
    if args.every is not None and not SHORTEST_S <= args.every < float("inf"):
        raise UserError(f"--every {args.every:g}", allowed=f"at least {SHORTEST_S:g} seconds")
    watched = _open(words, url)
    number = _write_once(watched, path, args.every)
    print(f"{path}: {number:,} bytes", flush=True)
    is_silent = False
    while args.every is not None:
        time.sleep(args.every)
        try:
            _write_once(watched, path, args.every)
            is_silent = False
        # The page shows how old it is. It is written again when the store answers.
        except (SweepError, OSError) as error:
            if not is_silent:
                print(f"warning: {one_line(words_of(error))}; trying again", file=sys.stderr, flush=True)
            is_silent = True
    return 0


def _write_once(watched: Sequence[Watched], path: Path, every_s: float | None) -> int:
    """Replace the file by a new one, and return its number of bytes.

    Raises:
        SweepError: the file cannot be written, or the store does not answer.
    """
    from orchestrator.serving.drawing import file_page
    from orchestrator.store.opening import as_usual

    page = file_page([each.look() for each in watched], every_s).encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # The file is the user's, not the store's: it gets the usual permissions.
    with as_usual():
        try:
            temporary.write_bytes(page)
            temporary.replace(path)
        except OSError as error:
            raise InfrastructureError(f"cannot write {path}: {error.strerror}") from error
        finally:
            temporary.unlink(missing_ok=True)
    return len(page)
