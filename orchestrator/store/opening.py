"""Whether a place can be a store: it answers, it can be written, and it lets one writer create a key."""

from __future__ import annotations

import errno
import time
import uuid
from pathlib import Path

from orchestrator.errors import InfrastructureError, SweepError, UserError
from orchestrator.store import permissions
from orchestrator.store.objects import ObjectStore

_TRIES, _PAUSE_S = 5, 0.2
_ENVIRONMENT = {
    "s3": "AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}


def look(objects: ObjectStore, key: str) -> None:
    """Finds out, within seconds, whether a bucket answers: that a key is absent may mean that all is.

    Raises:
        UserError: there is no such bucket, or these credentials are not accepted.
        InfrastructureError: it does not answer.
    """
    if objects.in_place:
        return
    try:
        if objects.get(key) is None:
            objects.list("")
    except OSError as error:
        raise refusal(objects.url, error) from error


def prove_exclusive(objects: ObjectStore, key: str, data: bytes) -> None:
    """Proves that what exists cannot be created; a place without that would let two workers win one claim.

    Args:
        objects: the place.
        key: of an object that exists.
        data: what it holds already, so that nothing is lost where the second create is let through.

    Raises:
        InfrastructureError: it could be created again.
        OSError: the place does not answer.
    """
    for number in range(_TRIES):
        try:
            created = objects.create(key, data)
        except OSError:
            if number == _TRIES - 1:
                raise
            time.sleep(_PAUSE_S * 2**number)
            continue
        if created:
            raise InfrastructureError(
                f"the store {objects.url} lets a second writer create the same key: claims would not hold",
                allowed="" if objects.in_place else "a server that heeds the condition If-None-Match: *",
            )
        return


def prove_writable(objects: ObjectStore) -> None:
    """Writes and deletes a probe; it has content, because a full disk still takes an empty file.

    Raises:
        UserError: the store cannot be written.
        InfrastructureError: it lets two writers create the same key.
    """
    key, data = f"probe-{uuid.uuid4().hex}", bytes(4096)
    try:
        objects.put(key, data)
        try:
            prove_exclusive(objects, key, data)
        finally:
            objects.delete(key)
    except OSError as error:
        raise not_writable(objects, error) from error


def not_writable(objects: ObjectStore, error: OSError) -> SweepError:
    """Returns what to tell the user of a store that refused a write."""
    if not objects.in_place:
        return refusal(objects.url, error)
    return permissions.refused(Path(objects.url), error) or UserError(
        f"the store {objects.url} is not writable: {error.strerror or error}",
        fix="store.url=FOLDER, or set SWEEP_STORE",
    )


def refusal(url: str, error: OSError) -> SweepError:
    """Returns what to tell the user of a bucket that refused, or did not answer."""
    scheme = url.partition("://")[0]
    said, names = error.strerror or str(error), _ENVIRONMENT.get(scheme, "")
    if error.errno == errno.ENXIO:
        return UserError(
            said, where=f"store.url={url}", fix="make the bucket first; nothing here makes or deletes one"
        )
    if error.errno == errno.EACCES:
        return UserError(
            f"the store does not let us in: {said}",
            where=f"store.url={url}",
            allowed=f"what the environment says: {names}",
            fix="set them to an account that may read, write, list and delete there",
        )
    if error.errno == errno.EINVAL:
        return UserError(said, where=f"store.url={url}", allowed=f"{scheme}://BUCKET/PREFIX")
    return InfrastructureError(
        f"the store does not answer: {said}",
        where=f"store.url={url}",
        allowed=f"what the environment says: {names}",
        fix="check them, and the network, with: sweep doctor",
    )
