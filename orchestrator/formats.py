"""The store formats: which fields of a record came with which.

A store keeps the format that it was made with. A field that a later format added is marked with the format's
constant below, has a default, and is never written into a store of an earlier format, whose readers may be
workers of an earlier version that refuse what they do not know.
"""

from __future__ import annotations

import msgspec

SINCE_2 = msgspec.Meta(extra={"since": 2})
"""Marks a field that only stores of format 2 or later hold: ``Annotated[str | None, SINCE_2] = None``."""
