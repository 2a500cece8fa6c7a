"""A code snapshot as one object: the same files make the same bytes, wherever they are packed."""

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
    """A file of a planned snapshot, and its content (the target of a link)."""

    file: CodeFile
    data: bytes
    mode: int


def packed(items: Sequence[ArchiveMember]) -> bytes:
    """Returns a tar archive of files, links and empty folders, in the given order; no times, no owners."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for file, data, mode in items:
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
    """Reads the files of a snapshot, and no others, from an archive; does not judge their content.

    Raises:
        ValueError: it is no archive, or a file is not in it.
    """
    items = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            members = {member.name: member for member in archive}
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
    """Stores an archive, unless it is there as it should be.

    Raises:
        OSError: the store did not answer.
    """
    prefix = layout.code_archive(digest)
    found = fetched(objects, digest)
    if found == archive:
        return
    if found is not None:
        objects.delete(prefix)  # damaged: what has the right size would not be uploaded again
    folder = objects.workspace(prefix)
    temporary = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
    temporary.write_bytes(archive)
    temporary.replace(folder / NAME)
    objects.upload(prefix)
    objects.release(prefix)


def fetched(objects: ObjectStore, digest: str) -> bytes | None:
    """Returns a snapshot's archive as the store has it, None when it is not there.

    Raises:
        OSError: the store did not answer.
    """
    prefix = layout.code_archive(digest)
    size = objects.trees([prefix])[prefix].get(NAME)
    if size is None:
        return None
    folder = objects.fetch(prefix, [File(NAME, size, "")])
    try:
        return (folder / NAME).read_bytes()
    except FileNotFoundError:
        return None
    finally:
        objects.release(prefix)
