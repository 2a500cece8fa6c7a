"""The schema of a cell of `translate_api_calling`: one language and one shard of rows, or all of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec.structs import force_setattr

from orchestrator.errors import UserError, home_expanded, nearest
from orchestrator.manifest import Stamp, stamps
from orchestrator.registry import GENERATORS, is_known, known
from orchestrator.tasks.base import LANGUAGES
from orchestrator.tasks.sources import open_source

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]

ALL = "all"
"""The label of the cell that assembles all languages and shards."""
ENDPOINT = "endpoint"


class _Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class SourceConfig(_Frozen, frozen=True, kw_only=True):
    """English rows: a file or folder that ``sweep data import api_calling`` reads, or a data set."""

    path: str
    fingerprint: str | None = None


class TranslatorConfig(_Frozen, frozen=True, kw_only=True):
    """The model: the name that an endpoint knows, or with `path` a folder or hub id of weights."""

    name: str
    path: str | None = None
    revision: str | None = None
    fingerprint: str | None = None


class EndpointConfig(_Frozen, frozen=True, kw_only=True):
    """An OpenAI-compatible endpoint. Its address and key are in the environment and recorded nowhere.

    Attributes:
        url_env: environment variable with the address, such as ``https://host/v1``.
        key_env: environment variable with the key.
        max_concurrent: requests of one worker at a time.
        requests_per_minute: of one worker; None for no limit of ours.
        timeout_s: seconds for one request, until its whole reply is there.
        max_tries: tries of one request that meet errors of the network, 429 or 5xx.
        max_wait_s: longest pause before a try, also where ``Retry-After`` names a longer one.
    """

    url_env: str = "OPENAI_BASE_URL"
    key_env: str = "OPENAI_API_KEY"
    max_concurrent: Positive = 16
    requests_per_minute: Positive | None = None
    timeout_s: Seconds = 180.0
    max_tries: Positive = 6
    max_wait_s: Seconds = 300.0


class OverlayConfig(_Frozen, frozen=True, kw_only=True):
    """Corrections by native speakers: a file, or a folder of files, that the review sheet saved."""

    path: str | None = None
    fingerprint: str | None = None


class SizesConfig(_Frozen, frozen=True, kw_only=True):
    """How many items the data set gets; None for all that are translated. As for ``sweep data import``."""

    num_train: Positive | None = None
    num_validation: Count = 0
    num_test: Positive | None = None
    seed: int = 0


class TranslationConfig(_Frozen, frozen=True, kw_only=True):
    """A cell's config.

    Attributes:
        to: all languages of the sweep.
        language, shard: those of this cell, or ``all``.
        num_shards: parts into which the rows are divided.
        engine: ``endpoint``, or one of `orchestrator.registry.GENERATORS`.
        max_attempts: replies that a row may take, in each language.
        max_tokens: limit of a reply.
        max_unanswered: share of a shard's rows that may stay without a reply; above it the stage fails.
        request: further fields of each request to an endpoint, such as ``{seed: 0}``.
        batch_size, precision, device: of a local model.
        cache_dir: folder of replies; None for ``translations`` in the folder of fetched data sets.
        review_rows: most rows of a review sheet.
        languages, shards: derived from `language` and `shard`.
    """

    task: Literal["api_calling"] = "api_calling"
    to: tuple[str, ...]
    language: str
    shard: str | int
    num_shards: Positive = 8
    source: SourceConfig
    model: TranslatorConfig
    engine: str = ENDPOINT
    max_attempts: Positive = 3
    max_tokens: Positive = 8192
    max_unanswered: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.02
    request: dict[str, Any] = {}
    batch_size: Positive = 8
    precision: Literal["fp32", "bf16"] = "bf16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    endpoint: EndpointConfig = EndpointConfig()
    cache_dir: str | None = None
    overlay: OverlayConfig = OverlayConfig()
    sizes: SizesConfig = SizesConfig()
    review_rows: Count = 200
    languages: tuple[str, ...] = ()
    shards: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.language not in (ALL, *self.to):
            raise ValueError(f"language={self.language}, but the languages to translate to are {self.to}")
        shard = str(self.shard)
        if shard != ALL and not (shard.isdecimal() and int(shard) < self.num_shards):
            raise ValueError(f"shard={shard}, but there are {self.num_shards} shards, from 0 on")
        one = (int(shard),) if shard != ALL else tuple(range(self.num_shards))
        # The struct is frozen, but `__post_init__` may still complete it.
        force_setattr(self, "languages", self.to if self.language == ALL else (self.language,))
        force_setattr(self, "shards", one)

    def check(self) -> None:
        """Check what the schema's types cannot express.

        Raises:
            UserError: an engine, the source or a correction cannot be used.
        """
        check_languages(self.to)
        if self.engine != ENDPOINT and not is_known(GENERATORS, self.engine):
            allowed = nearest(self.engine, [ENDPOINT, *known(GENERATORS)])
            raise UserError(f"unknown engine {self.engine!r}", allowed=allowed)
        if self.engine != ENDPOINT and self.model.path is None:
            raise UserError(f"engine={self.engine} needs weights", fix="model.path=FOLDER_OR_HUB_ID")
        _check_source(home_expanded(self.source.path), self.task)
        if self.overlay.path is not None:
            from orchestrator.translation.review import read_overlay  # it imports this module

            read_overlay(Path(self.overlay.path))


def _check_source(path: Path, task: str) -> None:
    """Check that a source has English rows.

    Raises:
        UserError: it has none, or cannot be read.
    """
    open_source(path, task)
    if not _num_rows(path, task, stamps(path)):
        raise UserError(f"{path} has no English row with a call", fix=f"sweep data describe {task}")


@functools.lru_cache(maxsize=4)
def _num_rows(path: Path, task: str, stamped: tuple[Stamp, ...]) -> int:
    """Return the number of rows; `stamped` is part of the cache's key only. Each cell checks the source."""
    from orchestrator.translation.rows import read_rows

    return len(read_rows(path, task))


def check_languages(languages: Sequence[str]) -> None:
    """Check the languages to translate to.

    Raises:
        UserError: there is none, or one is unknown, is English or comes twice.
    """
    others = [language for language in LANGUAGES if language != "en"]
    if not languages:
        raise UserError("no language to translate to", allowed=nearest("", others))
    for place, language in enumerate(languages):
        if language == "en":
            raise UserError("the rows are in English: to=en translates nothing")
        if language not in others:
            raise UserError(f"unknown language {language!r}", allowed=nearest(language, others))
        if language in languages[:place]:
            raise UserError(f"the language {language!r} comes twice")
