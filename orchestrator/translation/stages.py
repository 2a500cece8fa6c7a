"""Specs of the three stages of a translation: what each reads, uses and waits for. Literal constants only.

`translate` is one language and one shard of rows, and holds every reply. `validate` judges the replies
once more, so that a changed check requests none again. `assemble` takes all of them: a row that one language
lacks is dropped in all.
"""

from __future__ import annotations

from orchestrator.stage import StageSpec

_EACH = {"language": "languages", "shard": "shards"}
_ROWS = ("task", "source.fingerprint", "num_shards")

TRANSLATE = StageSpec(
    run="orchestrator.translation.run:translate",
    name="translate",
    version=1,
    reads=(
        *_ROWS,
        "engine",
        "model.name",
        "model.fingerprint",
        "max_attempts",
        "max_tokens",
        "request",
        "batch_size",
        "precision",
    ),
    uses=("source.path", "model.path", "model.revision", "endpoint", "max_unanswered", "device", "cache_dir"),
    each=_EACH,
    preload=("msgspec", "orchestrator.tasks.sources"),
    estimate="orchestrator.translation.planning:estimate",
    needs="orchestrator.translation.planning:needs",
)
"""The replies for the rows of one shard in one language."""

VALIDATE = StageSpec(
    run="orchestrator.translation.run:validate",
    name="validate",
    version=1,
    reads=_ROWS,
    uses=("source.path",),
    each=_EACH,
    after=("translate",),
)
"""The verdict on each row of one shard in one language."""

ASSEMBLE = StageSpec(
    run="orchestrator.translation.assemble:main",
    name="assemble",
    version=1,
    reads=(*_ROWS, "to", "model.name", "overlay.fingerprint", "sizes", "review_rows"),
    uses=("source.path", "overlay.path"),
    after=("validate",),
    skip="language!=all",
)
"""The data set, its manifest and the review sheets."""
