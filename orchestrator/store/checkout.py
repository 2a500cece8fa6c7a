"""The code that local workers run in place, and its digest, which is the version of their products.

The code of a sweep consists of this package, the modules of the stages, and files of the projects on the
import paths:

- In a git work tree: all files that git tracks.
- Everywhere: source files, by suffix, that git does not ignore.
- Code, settings and data that a command names and that existed at the launch. A named file that did not exist
  is an output of the command. Data may be one too, since only an option's name marks it as an input: another
  content is another version, but stops no worker.
- No project files at all when every stage is one of this package.
- Never: the store, hidden folders, environments, sweep files (which are sealed), and files such as README.

Workers compute the digest before each claim, so it must be cheap. A file is read once; after that its size,
times and inode are compared, and it is read again only when they differ. Small files come first: beyond
`MAX_BYTES` of content in total, size and time of change stand for the content. A folder with more than
`MAX_ENTRIES` entries counts as data.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator import provenance
from orchestrator.core.sweep import ComposedSweep
from orchestrator.errors import UserError
from orchestrator.spec import StageSpec
from orchestrator.store.objects import ObjectStore
from orchestrator.store.project import Ignored, git, imported_files, is_hidden, is_installed, root_of

MAX_BYTES = 100_000_000
_HALF = 32  # digits of a digest
MAX_ENTRIES, MAX_LISTED = 10_000, 50_000
"""Most entries of one folder, and of all folders of a project together."""

SETTLED_NS = 2_000_000_000
"""How long before its last read a file must have changed, in nanoseconds, for its digest to be reused.

File times have a coarse resolution. A file that is written again shortly after it was read can keep the same
times, so such a file is read again::

    10.000 s  write A
    10.001 s  read, time 10.00
    10.002 s  write B, time still 10.00
"""

_SUFFIXES = (
    ".py .pyi .pyx .pxd .sh .bash .zsh .r .jl .lua .pl .rb .js .mjs .ts .go .rs .java .scala .kt "
    ".swift .c .cc .cpp .cxx .h .hpp .cu .cuh .f90 .m .sql .ipynb"
)
_SOURCES = frozenset(_SUFFIXES.split())
_SETTINGS = frozenset([".json", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".conf"])
_DESCRIBE = ("readme", "license", "licence", "changelog", "contributing", "authors", "notice")
_MADE = frozenset(
    {"node_modules", "site-packages", "dist-packages", "wandb", "mlruns", "lightning_logs", "outputs"}
)
_SWEEP = re.compile(rb"^(stages|axes)[ \t]*:", re.MULTILINE)
_WORD = re.compile(r"[^\s;|&<>()'\"=]+")
_MAKES = re.compile(
    r"(?:>|\btee(?:\s+-\S+)*\s|(?:^|\s)-o[\s=]|(?:^|[\s.])(?:-{0,2}[\w-]+[_-]|--?)?(?:out|output|save|log|dump|write)"
    r"(?:[_-][\w-]+)?[\s=])\s*['\"]?$"
)
"""Matches before a word that names an output: a redirection, ``tee``, or an option such as ``--out``."""
_OPTION = r"(?:^|[\s.])-{0,2}(?:[\w-]+[_-])?(?:%s)(?:[_-][\w-]+)?[\s=]"
_INPUTS = (
    "data|dataset|inputs?|in|source|src|train|valid|validation|eval|test|vocab|vocabulary|dict|corpus|prompts?"
    "|tokenizer|labels?"
)
_TAKES = re.compile(rf"(?:(?<!<)<|{_OPTION % _INPUTS})\s*['\"]?$")
"""Matches before a word that names an input of any suffix: ``<``, or an option such as ``--train-file``."""
_RESULTS = "results?|predictions?|preds?|metrics?|scores?|reports?|summary|history|state|cache"
_MAY_MAKE = re.compile(rf"{_OPTION % _RESULTS}(?<!config[ =])(?<!template[ =])\s*['\"]?$")
"""Matches before a word that names an input of one program and an output of another: ``--predictions``."""


class _Seen(NamedTuple):
    """A file at the time that it was read.

    Attributes:
        stamp: Size, time of modification, time of change (both in nanoseconds) and inode.
        read_ns: Time of reading, in nanoseconds since 1970.
        digest: sha-256 of the content, hexadecimal.
    """

    stamp: tuple[int, int, int, int]
    read_ns: int
    digest: str


_SEEN: dict[str, _Seen] = {}
"""The files that this process has read, by path."""
_PACKAGE = Path(provenance.__file__).resolve().parent
"""The folder of this package."""


class Checkout:
    """The code of a sweep's stages, in the place from which workers import it.

    Args:
        specs: Stage name to spec.
        import_paths: Folders from which the user's stages are imported. Commands run in the first.
        left_out: Folders that hold no code, such as the store.
        named: Words of the commands that named code or settings at the launch; None to determine them now.

    Attributes:
        named: Those words. A launch passes them to its workers, so that all of them digest the same files.
    """

    def __init__(
        self,
        specs: Mapping[str, StageSpec],
        import_paths: Sequence[str],
        *,
        left_out: Sequence[Path] = (),
        named: Sequence[str] | None = None,
    ) -> None:
        self._targets = [spec.run for spec in specs.values() if spec.run]
        self._commands = [spec.command for spec in specs.values() if spec.command]
        self._walker = _Walker({str(path.resolve()) for path in (_PACKAGE, *left_out)})
        self._paths = [Path(path).resolve() for path in import_paths if os.path.isdir(path)]  # noqa: PTH112
        # Stages of this package import nothing from the user's project, so its files cannot affect them.
        is_theirs = self._commands or any(not target.startswith("orchestrator.") for target in self._targets)
        theirs = self._paths if is_theirs else []
        # Installed packages are recorded with each attempt; this package is digested on its own.
        own = [p for p in theirs if not (is_installed(p) or p.is_relative_to(_PACKAGE))]
        self._roots = list(dict.fromkeys(_root(path) for path in own))
        self._ignored = {root: Ignored(root) for root in self._roots}
        self._tracked = {
            root: frozenset(p for p in _tracked(root) if not self._is_sealed(p)) for root in self._roots
        }
        # Workers get `named` from the launch: by now, a command may have created more of the files it names.
        words = self._words() if self._paths else {}
        self.named = tuple(sorted(self._named(words) if named is None else named))
        self._made = {path for word, path in words.items() if word not in self.named}
        data = {word for word in self._words_after(_TAKES) if not _is_source(word)} | self._words_after(
            _MAY_MAKE
        )
        self._data = {f"command/{word}" for word in data.intersection(self.named)}
        self._first: dict[str, str] | None = None

    def digest(self) -> str:
        """Return the digest of the code as it is now.

        The digest does not depend on where the code lies: equal code elsewhere has the same digest. The data
        that commands name affects its first half only.
        """
        files = self._files()
        if self._first is None:
            self._first = files
        # The NUL byte cannot occur in a name, so no two sets of files give the same text.
        lines = {name: f"{name}\0{digest}\n" for name, digest in sorted(files.items())}
        without = "".join(line for name, line in lines.items() if name not in self._data)
        return _sha256("".join(lines.values()))[:_HALF] + _sha256(without)[_HALF:]

    def is_code_of(self, digest: str) -> bool:
        """Return whether the code is that of a launch with the same `named`, whatever its data is by now.

        An attempt of the launch may have written that data. What is made with it has a version of its own.
        """
        return self.digest()[_HALF:] == digest[_HALF:]

    def changed(self) -> list[str]:
        """Return the files that were changed, added or removed since the first digest, without named data."""
        now, first = self._files(), self._first or {}
        names = {*now, *first} - self._data
        # One file may have several names: a stage's module is a file of the project too.
        return sorted({name.partition("/")[2] for name in names if now.get(name) != first.get(name)})

    def _files(self) -> dict[str, str]:
        """Return the digest of each file, by a name that starts with the number of its project."""
        found: dict[str, tuple[str, os.stat_result]] = {}
        for source in self._walker.sources(_PACKAGE):
            _add(found, f"package/{source[len(str(_PACKAGE)) + 1 :]}", source)
        for number, root in enumerate(self._roots):
            skip = len(str(root).rstrip("/")) + 1
            sources = self._ignored[root].without(self._walker.sources(root), known=self._tracked[root])
            for path in self._tracked[root].union(path for path in sources if path not in self._made):
                _add(found, f"{number}/{path[skip:]}", path)
        if self._paths:
            for word in self.named:
                _add(found, f"command/{word}", str(self._paths[0] / word))
        for file in provenance.stage_files(self._targets, [str(path) for path in self._paths]):
            _add(found, f"stage/{file.name}", str(file))
        return self._digests(found)

    def _is_sealed(self, path: str) -> bool:
        """Return whether a file is a sweep file beside the stages; a launch seals its content."""
        folder, _, name = path.rpartition("/")
        if not name.endswith((".yaml", ".yml")):
            return False
        # What a Hydra app composes is sealed too, so that its config files may be edited meanwhile.
        if self._commands and all("{hydra_app}" in text for text in self._commands):
            return True
        if folder not in map(str, self._paths[:1]):
            return False
        try:
            with open(path, "rb") as stream:  # noqa: PTH123
                return _SWEEP.search(stream.read(2**16)) is not None
        except OSError:
            return False

    def _words(self) -> dict[str, str]:
        """Return the words of the commands, each with the path that it would name."""
        words = (word for command in self._commands for word in _WORD.findall(command) if "{" not in word)
        return {word: os.path.normpath(self._paths[0] / word) for word in words}

    def _words_after(self, before: re.Pattern[str]) -> set[str]:
        """Return the words of the commands before which a pattern matches."""
        return {m[0] for c in self._commands for m in _WORD.finditer(c) if before.search(c, 0, m.start())}

    def _named(self, words: Mapping[str, str]) -> Iterator[str]:
        """Yield the words that name code, and settings or data that no command writes."""
        made, taken = self._words_after(_MAKES), self._words_after(_TAKES)
        for word, path in words.items():
            suffix = os.path.splitext(word)[1].lower()  # noqa: PTH122
            is_code = suffix in _SOURCES
            is_given = suffix in _SETTINGS or word in taken or os.access(path, os.X_OK)
            if os.path.isfile(path) and (  # noqa: PTH113 - False for an impossible file name
                is_code or (word not in made and is_given)
            ):
                yield word
                real = os.path.realpath(path)
                # A script outside of the project finds its modules beside itself.
                if suffix == ".py" and not any(Path(real).is_relative_to(root) for root in self._roots):
                    yield from (os.path.relpath(each, self._paths[0]) for each in imported_files(real))

    def _digests(self, found: Mapping[str, tuple[str, os.stat_result]]) -> dict[str, str]:
        left, digests = MAX_BYTES, {}
        for name, (path, info) in sorted(found.items(), key=self._order):
            left -= info.st_size
            # An installed copy of this package may differ in modes, so those do not count there.
            kind = "exec" if info.st_mode & 0o100 and not name.startswith("package/") else "file"
            content = self._content(path, info) if left >= 0 else f"{info.st_size} {info.st_mtime_ns}"
            digests[name] = f"{kind} {content}"
        return digests

    def _order(self, item: tuple[str, tuple[str, os.stat_result]]) -> tuple[bool, int, str]:
        """Return a key to sort by: smallest first, so that one large file excludes no others; data last."""
        return item[0] in self._data, item[1][1].st_size, item[0]

    def _content(self, path: str, info: os.stat_result) -> str:
        """Return the digest of a file's content, from the cache unless the file may have changed."""
        stamp = (info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)
        seen = _SEEN.get(path)
        if seen is not None and seen.stamp == stamp and seen.read_ns - info.st_ctime_ns > SETTLED_NS:
            return seen.digest
        read_ns = time.time_ns()
        try:
            with open(path, "rb") as stream:  # noqa: PTH123 - faster; runs for many files before each claim
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        _SEEN[path] = _Seen(stamp, read_ns, digest)
        return digest


def checkout_of(
    objects: ObjectStore,
    sweep: ComposedSweep,
    import_paths: Sequence[str],
    *,
    named: Sequence[str] | None = None,
) -> Checkout:
    """Return the code of a sweep's stages, without the store's own folder."""
    return Checkout(sweep.specs, import_paths, left_out=[objects.home], named=named)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _is_source(name: str) -> bool:
    """Return whether a file is code or settings by its suffix."""
    return os.path.splitext(name)[1].lower() in _SOURCES | _SETTINGS  # noqa: PTH122


def _root(path: Path) -> Path:
    try:
        return root_of(path)
    except UserError:  # git refuses to read it: treat the folder as one without git
        return path


def _tracked(root: Path) -> frozenset[str]:
    """Return the files that git tracks in a work tree, with submodules but without README and its kind."""
    try:
        listing = git(root, "ls-files", "-z", "--cached", "--recurse-submodules")
    except UserError:
        return frozenset()
    names = [os.fsdecode(name) for name in (listing or b"").split(b"\0") if name]
    return frozenset(os.path.join(root, name) for name in names if not _describes(name))  # noqa: PTH118


def _describes(name: str) -> bool:
    base = name.rpartition("/")[2].lower()
    return base.startswith(_DESCRIBE) or base.startswith(".git")


def _add(found: dict[str, tuple[str, os.stat_result]], name: str, path: str) -> None:
    try:
        info = os.stat(path)  # noqa: PTH116 - faster; runs for many files before each claim
    except OSError:
        return  # deleted meanwhile, or a dangling link
    if stat.S_ISREG(info.st_mode):
        found[name] = (path, info)


class _Folder(NamedTuple):
    """The relevant entries of a folder at the time that it was listed, as paths.

    Attributes:
        stamp: Time of modification in nanoseconds, and inode.
        read_ns: Time of listing, in nanoseconds since 1970.
        num_entries: Number of all entries.
        sources: Source files.
        folders: Subfolders to visit.
    """

    stamp: tuple[int, int]
    read_ns: int
    num_entries: int
    sources: tuple[str, ...]
    folders: tuple[str, ...]


class _Walker:
    """Finds source files repeatedly. A folder that has not changed is not listed again."""

    def __init__(self, left_out: set[str]) -> None:
        self._left_out = left_out
        self._folders: dict[str, _Folder] = {}

    def sources(self, root: Path) -> Iterator[str]:
        """Yield source files, breadth first and through links to folders, visiting each folder once."""
        todo, num_listed = deque([str(root)]), 0
        been: set[tuple[int, int]] = set()
        # Breadth first: when the limit is reached, the folders near the root have been visited.
        while todo and num_listed < MAX_LISTED:
            path = todo.popleft()
            try:
                info = os.stat(path)  # noqa: PTH116
            except OSError:
                continue
            # Links may form a circle, or lead to one folder twice.
            if (info.st_dev, info.st_ino) in been:
                continue
            been.add((info.st_dev, info.st_ino))
            folder = self._listed(path, info)
            num_listed += folder.num_entries
            yield from folder.sources
            todo.extend(folder.folders)

    def _listed(self, path: str, info: os.stat_result) -> _Folder:
        stamp, known = (info.st_mtime_ns, info.st_ino), self._folders.get(path)
        if known is not None and known.stamp == stamp and known.read_ns - info.st_mtime_ns > SETTLED_NS:
            return known
        read_ns = time.time_ns()
        sources, folders = [], []
        entries = _entries(path)
        for entry in entries:
            if not _is_folder(entry):
                if os.path.splitext(entry.name)[1].lower() in _SOURCES:  # noqa: PTH122
                    sources.append(entry.path)
            elif not (is_hidden(entry.name) or entry.name in _MADE or self._is_left_out(entry)):
                folders.append(entry.path)
        self._folders[path] = _Folder(stamp, read_ns, len(entries), tuple(sources), tuple(folders))
        return self._folders[path]

    def _is_left_out(self, entry: os.DirEntry[str]) -> bool:
        return os.path.realpath(entry.path) in self._left_out


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link
        return False


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """List a folder in sorted order; empty when it is unreadable, too large, an environment, or a store."""
    entries: list[os.DirEntry[str]] = []
    try:
        with os.scandir(folder) as listing:
            for entry in listing:
                # These files mark a virtual environment and a store.
                if entry.name in ("pyvenv.cfg", "store.json") or len(entries) == MAX_ENTRIES:
                    return []
                entries.append(entry)
    except OSError:
        return []
    return sorted(entries, key=lambda entry: entry.name)
