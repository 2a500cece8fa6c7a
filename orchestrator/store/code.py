"""Code snapshots: the code of a launch, for workers that start later or on other machines.

A snapshot holds this package as it was imported, and the projects of the user's import paths; `project`
defines which files belong to one. Packages in ``site-packages`` are not included: they are the environment. A
snapshot is named by the digest of its content, so equal code is stored once, and launches that race write the
same bytes. It counts once its record exists, which is written last; content alone decides whether it is
whole. Its files are read-only, so that no stage changes by accident what others run. Files that stages add
(``__pycache__``, logs) are harmless unless Python could import them.

A worker is started from a snapshot with ``PYTHONPATH=<package_path>`` by ``python -P -m
orchestrator.execution.main``, or with ``PYTHONSAFEPATH=1`` where ``-P`` cannot be passed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import msgspec

import orchestrator
from orchestrator import formats, provenance
from orchestrator.core.records import Code, CodeFile, CodeManifest
from orchestrator.core.sweep import ComposedSweep
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.manifest import file_digest
from orchestrator.store import layout
from orchestrator.store.objects import TEMPORARY, ObjectStore
from orchestrator.store.project import (
    Found,
    everything_in,
    files_of,
    is_installed,
    paths_in,
    root_of,
    unreadable,
)

MAX_BYTES, MAX_FILES = 200_000_000, 20_000
_IMPORTABLE = (".py", ".so")


class PlannedFile(NamedTuple):
    """One file of a planned snapshot.

    Attributes:
        file: Path, kind, size and digest.
        data: Content of a file; target of a link; empty for a folder.
        mode: Permission bits.
    """

    file: CodeFile
    data: bytes
    mode: int


class SnapshotPlan(NamedTuple):
    """A snapshot ready to be stored: each file has been read once, and nothing has been written."""

    code: Code
    items: tuple[PlannedFile, ...]

    @property
    def num_bytes(self) -> int:
        """Total size of all files in bytes."""
        return sum(item.file.size for item in self.items)


def plan(
    objects: ObjectStore,
    import_paths: Sequence[str],
    *,
    targets: Iterable[str] = (),
    exclude: Sequence[Path] = (),
    version: str = "",
) -> SnapshotPlan:
    """Read the code at the import paths into a plan; write nothing.

    Args:
        objects: The store; its own folder is never part of the code.
        import_paths: Folders from which the user's stages are imported.
        targets: ``module:function`` of each stage. Their files are included even if git ignores them.
        exclude: Folders that hold no code.
        version: Digest of the checkout; see `orchestrator.store.checkout`.

    Raises:
        UserError: A folder is missing, a file is unreadable, or there is more than code should be.
    """
    package = Path(orchestrator.__file__).resolve().parent
    paths = [_existing(path) for path in import_paths]
    left_out = [package, *(path.resolve() for path in (objects.home, *exclude))]
    roots = {
        path: root_of(path) for path in paths if not (is_installed(path) or path.is_relative_to(package))
    }
    stage_files = provenance.stage_files(targets, [str(path) for path in roots])
    projects = _projects(list(dict.fromkeys(roots.values())), left_out, stage_files)
    places = {package: f"{layout.CODE_PACKAGE}/{package.name}"}
    places |= {root: layout.code_project(number) for number, root in enumerate(projects)}
    found = [(places[package], file) for file in everything_in(package)]
    found += [(places[root], file) for root, files in projects.items() for file in files]
    _check_size(found, projects)
    items = {item.file.path: item for item in (_read(place, file) for place, file in found) if item}
    folders = {parent.as_posix() for path in items for parent in PurePosixPath(path).parents}
    mapped = []
    for path in paths:
        if path not in roots and not path.is_relative_to(package):
            mapped.append(str(path))
            continue
        root = _innermost(path, places)
        mapped.append(PurePosixPath(places[root], path.relative_to(root).as_posix()).as_posix())
        # An import path without files is recorded as an empty folder, so that it exists in the snapshot too.
        if mapped[-1] not in folders:
            empty = CodeFile(path=mapped[-1], kind="folder", size=0, sha256="")
            items[mapped[-1]] = PlannedFile(empty, b"", 0)
    files = [item.file for item in items.values()]
    git = provenance.without_diff(provenance.git_state(str(import_paths[0]))) if import_paths else {}
    code = Code(digest=digest_of(files), import_paths=tuple(mapped), git=git, version=version)
    return SnapshotPlan(code, tuple(items.values()))


def version_of(code: Code, sweep: ComposedSweep, paths: Sequence[str]) -> str:
    """Return the version of the products that a snapshot's workers make.

    This is the checkout's digest, so that a product has the same version with and without a snapshot. Where
    it was not recorded, the version is computed from the snapshot itself.

    Args:
        code: The snapshot.
        sweep: Sweep whose stages the workers run.
        paths: Import paths of the snapshot on this machine.
    """
    return code.version or provenance.code_digest([s.run for s in sweep.specs.values() if s.run], paths)


def store(objects: ObjectStore, planned: SnapshotPlan) -> Code:
    """Store a planned snapshot, or only its missing and damaged files; return its digest and paths.

    A whole snapshot is left as it is.

    Raises:
        InfrastructureError: The store does not keep the snapshot.
    """
    digest = planned.code.digest
    items = sorted(planned.items, key=lambda item: item.file.path)
    archives = objects.archives()
    try:
        if archives is not None:
            archives.keep(digest, items)
        # Another launch may have stored the same code already.
        if not damage(objects, digest):
            return planned.code
        if archives is None:
            key = layout.code(digest)
            _write_all(objects.workspace(key), items)
            objects.upload(key)
        objects.put(layout.code_record(digest), record_of(item.file for item in items))
        problem = damage(objects, digest)
    except OSError as error:
        raise InfrastructureError(f"cannot store the code: {error}", where=objects.url) from error
    if problem:
        raise InfrastructureError(f"the store does not keep the code: {problem}", where=objects.url)
    return planned.code


def damage(objects: ObjectStore, digest: str) -> str:
    """Return what is wrong with a snapshot, "" when every file has the content that the digest names.

    The check covers the local folder from which the code is imported. For a bucket, that folder is unpacked
    or repaired from the archive first.

    Raises:
        OSError: The store did not answer.
    """
    data = objects.get(layout.code_record(digest))
    if data is None:
        return "it is not there, or not whole"
    try:
        files = formats.decode(data, CodeManifest).files
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return f"its record is unreadable ({error})"
    # The record is compared with the name, so that a damaged record cannot vouch for damaged files.
    if digest_of(files) != digest:
        return "its record is not the one that was written"
    root = objects.fetch(layout.code(digest), ())
    problem = _damage(root, files)
    if problem and (archives := objects.archives()) is not None:
        try:
            items = archives.files(digest, files)
        except ValueError as error:
            return f"its archive in the store is damaged ({error})"
        if items is None:
            return "its archive is not in the store"
        _write_all(root, items)
        problem = _damage(root, files)
    return problem


def _damage(root: Path, files: Sequence[CodeFile]) -> str:
    for file in files:
        if problem := _problem(root / file.path, file):
            return problem
    # A module that was added could shadow one of the recorded modules.
    for stray in _strays(root, {file.path for file in files}):
        return f"{stray.relative_to(root).as_posix()} is no part of it"
    return ""


def record_of(files: Iterable[CodeFile]) -> bytes:
    """Return the content of a snapshot's record."""
    return msgspec.json.encode(CodeManifest(files=tuple(files)))


def folder(objects: ObjectStore, digest: str) -> Path:
    """Return the local folder of a snapshot."""
    return objects.folder(layout.code(digest))


def package_path(objects: ObjectStore, digest: str) -> Path:
    """Return the local folder with the `orchestrator` package, a worker's PYTHONPATH."""
    return folder(objects, digest) / layout.CODE_PACKAGE


def python_path(package: Path, environment: Mapping[str, str]) -> str:
    """Return a PYTHONPATH on which a package comes first, and then what an environment names.

    Args:
        package: folder with the package.
        environment: whose own folders stay: packages may be installed there.
    """
    return os.pathsep.join(filter(None, (str(package), environment.get("PYTHONPATH"))))


def import_paths(objects: ObjectStore, code: Code) -> tuple[str, ...]:
    """Return the user's import paths on this machine, absolute."""
    root = folder(objects, code.digest)
    return tuple(str(root / path) for path in code.import_paths)


def digest_of(files: Iterable[CodeFile]) -> str:
    """Return the sha-256 over path, kind and content of all files, hexadecimal."""
    lines = sorted(f"{file.path}\0{file.kind}\0{file.sha256}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# Reading the user's code


def _existing(path: str) -> Path:
    if not Path(path).is_dir():
        raise UserError(f"there is no folder {path}", where="from which the stages are to be imported")
    return Path(path).resolve()


def _projects(
    roots: Sequence[Path], left_out: Sequence[Path], stage_files: Sequence[Path]
) -> dict[Path, list[Found]]:
    """List the files of each root, in the given order; a root among another root's files is part of it."""
    listed: dict[Path, set[Path]] = {}
    covered: set[Path] = set()
    for root in sorted(roots, key=lambda root: len(root.parts)):
        if root not in covered:
            listed[root] = paths_in(root, left_out)
            covered.update(parent for path in listed[root] for parent in path.parents)
    for path in stage_files:
        listed[_innermost(path, listed)].add(path)
    return {root: files_of(root, listed[root]) for root in roots if root in listed}


def _innermost(path: Path, roots: Iterable[Path]) -> Path:
    return max((root for root in roots if path.is_relative_to(root)), key=lambda root: len(root.parts))


def _read(place: str, file: Found) -> PlannedFile | None:
    path = f"{place}/{file.path}"
    try:
        # The digest is over UTF-8 text, so every name must be valid UTF-8.
        path.encode()
        data = os.fsencode(file.link) if file.kind == "link" else file.source.read_bytes()
    except FileNotFoundError:
        return None  # deleted since it was listed
    except UnicodeEncodeError:
        raise UserError(
            f"the name of {path!r} is no UTF-8", where=str(file.source.parent), fix="rename or ignore it"
        ) from None
    except OSError as error:
        raise unreadable(file.source, error) from error
    digest = hashlib.sha256(data).hexdigest()
    return PlannedFile(CodeFile(path=path, kind=file.kind, size=len(data), sha256=digest), data, file.mode)


def _check_size(found: Sequence[tuple[str, Found]], roots: Iterable[Path]) -> None:
    num_bytes = sum(file.size for _, file in found)
    if num_bytes <= MAX_BYTES and len(found) <= MAX_FILES:
        return
    by_size = num_bytes > MAX_BYTES
    weights = {f"{place}/{file.path}": file.size if by_size else 1 for place, file in found}
    # Report the folders of the user's machine instead of those within the snapshot.
    originals = {layout.code_project(number): root for number, root in enumerate(roots)}
    largest = []
    for path, weight in _largest(weights):
        original = originals.get(path.parts[0], Path(path.parts[0])).joinpath(*path.parts[1:])
        largest.append(f"{original} ({f'{weight / 1e6:,.1f} MB' if by_size else f'{weight:,} files'})")
    raise UserError(
        f"the code of this launch is {num_bytes / 1e6:,.0f} MB in {len(found):,} files: is there data in it?",
        where="the largest: " + ", ".join(largest),
        allowed=f"at most {MAX_BYTES / 1e6:,.0f} MB and {MAX_FILES:,} files",
        fix="list what is no code in .gitignore (after `git init`, if there is no repository), "
        "and start sweep in the folder of the code",
    )


def _largest(weights: Mapping[str, int], limit: int = 3) -> list[tuple[PurePosixPath, int]]:
    """Return the largest files and folders. A folder that owes its size to one child gives way to it."""
    totals: Counter[PurePosixPath] = Counter()
    children: defaultdict[PurePosixPath, set[PurePosixPath]] = defaultdict(set)
    for name, weight in weights.items():
        path = PurePosixPath(name)
        for part in (path, *path.parents[:-1]):
            totals[part] += weight
            children[part.parent].add(part)
    chosen = set(children[PurePosixPath(".")])
    while True:
        top = max(chosen, key=lambda path: totals[path])
        inner = children.get(top, set())
        # The heaviest entry is spread over several children, so it is the most useful one to name.
        if not inner or max(totals[path] for path in inner) < 0.8 * totals[top]:
            break
        chosen = (chosen - {top}) | inner
    return [(path, totals[path]) for path in sorted(chosen, key=lambda path: (-totals[path], path))[:limit]]


# Files of a snapshot


def _problem(path: Path, file: CodeFile) -> str:
    try:
        if file.kind == "folder":
            return "" if path.is_dir() else f"{file.path} is missing"
        if path.is_symlink() != (file.kind == "link"):
            return f"{file.path} is {'a' if path.is_symlink() else 'no'} link"
        link = os.fsencode(path.readlink()) if file.kind == "link" else None
        found = file_digest(path) if link is None else hashlib.sha256(link).hexdigest()
        return "" if found == file.sha256 else f"{file.path} has other content than recorded"
    except (FileNotFoundError, NotADirectoryError):
        return f"{file.path} is missing"
    except OSError as error:
        return f"{file.path} cannot be read ({error.strerror})"


def _write_all(root: Path, items: Sequence[PlannedFile]) -> None:
    """Write missing and damaged files, and remove files that are not part of the snapshot."""
    root.mkdir(parents=True, exist_ok=True)
    for item in items:
        _write(root, item)
    for stray in _strays(root, {item.file.path for item in items}):
        stray.unlink(missing_ok=True)


def _write(root: Path, item: PlannedFile) -> None:
    """Write a file under a temporary name and rename it, unless it exists with the right content."""
    path = root / item.file.path
    _make_folder(root, path if item.file.kind == "folder" else path.parent)
    if not _problem(path, item.file):
        return
    # Renaming a file over a folder would fail.
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    if item.file.kind == "link":
        temporary.symlink_to(os.fsdecode(item.data))
    else:
        temporary.write_bytes(item.data)
        # Read-only, with the group and other bits of the folder that the store's modes prescribe.
        temporary.chmod((0o555 if item.mode & 0o100 else 0o444) & root.stat().st_mode | 0o400)
    temporary.replace(path)


def _make_folder(root: Path, path: Path) -> None:
    """Create a folder, and remove a file or link in its place."""
    if path != root:
        _make_folder(root, path.parent)
        if path.is_symlink() or path.is_file():
            path.unlink(missing_ok=True)
        path.mkdir(exist_ok=True)


def _strays(root: Path, known: set[str]) -> Iterator[Path]:
    """Yield files that Python could import and that are not part of the snapshot."""
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            path = Path(place, name)
            if path.suffix in _IMPORTABLE and path.relative_to(root).as_posix() not in known:
                yield path
