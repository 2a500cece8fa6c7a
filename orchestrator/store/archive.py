"""A code snapshot as one tar archive. Equal files give equal bytes on every machine."""

from __future__ import annotations

import io
import os
import tarfile
import uuid
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.core.records import CodeFile
from orchestrator.manifest import File
from orchestrator.store import layout
from orchestrator.store.objects import TEMPORARY, ObjectStore

NAME = "files.tar"


class ArchiveMember(NamedTuple):
    """One file of a planned snapshot.

    Attributes:
        file: Path, kind, size and digest.
        data: Content of a file; target of a link; empty for a folder.
        mode: Permission bits.
    """

    file: CodeFile
    data: bytes
    mode: int


def packed(items: Sequence[ArchiveMember]) -> bytes:
    """Return a tar archive of the given files, links and empty folders, in the given order."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for file, data, mode in items:
            # A new TarInfo has time 0 and no owner, so that equal code gives an equal archive.
            info = tarfile.TarInfo(file.path)
            info.mode = mode & 0o777
            if file.kind == "folder":
                info.type = tarfile.DIRTYPE
            elif file.kind == "link":
                info.type, info.linkname = tarfile.SYMTYPE, os.fsdecode(data)
            else:
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data if info.isreg() else b""))
    return stream.getvalue()


def unpacked(data: bytes, files: Sequence[CodeFile]) -> list[ArchiveMember]:
    """Return the listed files of a snapshot from its archive; ignore all other members.

    The content is not checked here.

    Args:
        data: Bytes of the archive.
        files: Files to extract, as recorded in the snapshot's manifest.

    Raises:
        ValueError: The bytes are not an archive, or a listed file is missing from it.
    """
    items = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            members = {member.name: member for member in archive}
            # Only recorded files are taken: a damaged archive may hold absolute paths or "..".
            for file in files:
                member = members[file.path]
                stream = archive.extractfile(member) if member.isreg() else None
                content = stream.read() if stream is not None else os.fsencode(member.linkname)
                items.append(ArchiveMember(file, content, member.mode))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(str(error)) from error
    except KeyError as error:
        raise ValueError(f"{error} is not in it") from error
    return items


def keep(objects: ObjectStore, digest: str, archive: bytes) -> None:
    """Store an archive, unless the store already has exactly these bytes.

    Args:
        objects: The store.
        digest: Digest of the snapshot.
        archive: Bytes of the archive.

    Raises:
        OSError: The store did not answer.
    """
    prefix = layout.code_archive(digest)
    found = fetched(objects, digest)
    if found == archive:
        return
    if found is not None:
        # The upload skips files whose size matches, so a damaged archive must be deleted first.
        objects.delete(prefix)
    folder = objects.workspace(prefix)
    # Write and rename, so that a process that is killed leaves no half archive for the upload.
    temporary = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
    temporary.write_bytes(archive)
    temporary.replace(folder / NAME)
    objects.upload(prefix)
    objects.release(prefix)


def fetched(objects: ObjectStore, digest: str) -> bytes | None:
    """Return the stored archive of a snapshot; None when there is none.

    Raises:
        OSError: The store did not answer.
    """
    prefix = layout.code_archive(digest)
    size = objects.trees([prefix])[prefix].get(NAME)
    if size is None:
        return None
    # The digest is left empty: the caller checks the files after it has unpacked them.
    folder = objects.fetch(prefix, [File(NAME, size, "")])
    try:
        return (folder / NAME).read_bytes()
    except FileNotFoundError:
        return None
    finally:
        objects.release(prefix)
