"""What becomes of output that cannot be written, and other parts of the entry of all programs."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator import entry
from tests.recording import Answers


class Failing(io.StringIO):
    """Cannot be written from some time on."""

    def __init__(self, error: OSError | None = None) -> None:
        super().__init__()
        self.error = error
        self.silenced = os.open(os.devnull, os.O_WRONLY)

    def write(self, text: str) -> int:
        if self.error is not None:
            raise self.error
        return super().write(text)

    def fileno(self) -> int:
        return self.silenced


def _tried(act: Callable[[], object]) -> object:
    try:
        return act()
    except (entry.ReaderLeft, OSError) as error:
        return f"{type(error).__name__}: {error}"


def broken_output() -> Answers:
    """Writes to streams that nobody reads, or on a full disk."""
    for name, error in {
        "none": None,
        "pipe": BrokenPipeError(32, "Broken pipe"),
        "full": OSError(28, "No space left on device"),
    }.items():
        for is_silent in (False, True):
            under = Failing()
            stream = entry.Stream(under, is_silent=is_silent)
            first = _tried(lambda to=stream: to.write("one\n"))
            under.error = error
            second, flushed = _tried(lambda to=stream: to.write("two\n")), _tried(stream.flush)
            under.error = None
            yield (
                f"{name} {is_silent}",
                (
                    first,
                    second,
                    flushed,
                    _tried(stream.flush),
                    _tried(lambda to=stream: to.write("three\n")),
                    under.getvalue(),
                ),
            )
            os.close(under.silenced)
    before = sys.stdout
    try:
        for made in (io.StringIO(), entry.Stream(io.StringIO(), is_silent=False)):
            sys.stdout = made  # type: ignore[assignment]
            entry.need_output()
            first = getattr(sys.stdout, "is_silent", None)
            entry.outlive_the_reader()
            second = getattr(sys.stdout, "is_silent", None)
            entry.need_output()
            third = getattr(sys.stdout, "is_silent", None)
            sys.stdout = before
            yield f"of {type(made).__name__}", (first, second, third)
    finally:
        sys.stdout = before
    with tempfile.TemporaryFile("w+") as file:
        made_for = entry._writable(None, file.fileno(), "")
        made_for.write("é\udcff\n")
        made_for.flush()
        file.seek(0)
        yield "made anew", (os.pread(file.fileno(), 99, 0), made_for.encoding, made_for.errors)
        made_for.close()
        yield "still open", os.fstat(file.fileno()).st_size
        ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        yield (
            "replaced",
            (entry._writable(ascii_only, 1, "").errors, entry._writable(ascii_only, 1, "latin-1").encoding),
        )
        yield "of a notebook", type(entry._writable(io.StringIO(), 1, "ascii")).__name__


@contextmanager
def _output(number: int) -> Iterator[None]:
    """Has descriptor 1 lead elsewhere."""
    kept, before = os.dup(1), sys.stdout
    os.dup2(number, 1)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    try:
        yield
    finally:
        sys.stdout.close()
        sys.stdout = before
        os.dup2(kept, 1)
        os.close(kept)


def entries() -> Answers:
    """Waiting for a reader, and output for people."""
    reader, writer = os.pipe()
    with _output(writer):
        started_s = time.monotonic()
        yield "a reader is there", (entry.pause(0.05), time.monotonic() - started_s >= 0.05)
        os.close(reader)
        yield "the reader has left", _tried(lambda: entry.pause(5.0))
    os.close(writer)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, _output(out.fileno()):
        kept, stderr = os.dup(2), sys.stderr
        os.dup2(err.fileno(), 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        try:
            for as_json in (False, True):
                with entry.for_people(as_json=as_json):
                    print(f"for people {as_json}", flush=True)
                    os.write(1, b"by a child\n")
                    entry.give_back_output()
                    os.write(1, b"given back\n")
                print(f"for programs {as_json}", flush=True)
        finally:
            sys.stderr.close()
            sys.stderr = stderr
            os.dup2(kept, 2)
            os.close(kept)
        yield "standard output", os.pread(out.fileno(), 999, 0).decode()
        yield "standard error", os.pread(err.fileno(), 999, 0).decode()


def short_paths() -> Answers:
    """Paths for sockets and for imports."""
    before, usual = tempfile.tempdir, dict(os.environ)
    try:
        for folder in ("/tmp", "/tmp/" + "x" * 60, "/tmp/" + "é" * 28):
            tempfile.tempdir = folder
            with entry.short_paths():
                within = tempfile.tempdir
            yield f"sockets of {folder[:9]}", (entry.socket_folder(), within, tempfile.tempdir == folder)
        for path in ("", "lib:/abs:", "a/../b"):
            os.environ["PYTHONPATH"] = path
            entry.fix_import_paths()
            yield f"import paths {path}", os.environ["PYTHONPATH"].replace(str(Path.cwd()), "HERE")
    finally:
        tempfile.tempdir = before
        os.environ.clear()
        os.environ.update(usual)


ASKED: dict[str, Callable[[], Answers]] = {
    "broken_output": broken_output,
    "entries": entries,
    "short_paths": short_paths,
}
