"""What a translation needs and costs, for a plan: the hooks of the stage `translate`. They import no torch.

Requests are counted from the rows. Tokens are estimated from characters: 4 of English, or of the JSON around
it, make a token (our rule of thumb), and a translation takes as many tokens beside English as MGSM does.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from orchestrator.costs import Estimate, Hardware, Measured, Need
from orchestrator.errors import home_expanded
from orchestrator.manifest import Stamp, stamps
from orchestrator.sft import model_folder
from orchestrator.sft.config import is_hub_id
from orchestrator.sft.needs import FETCH_MODEL, engine_packages, missing_files, problem_of
from orchestrator.stage import Config
from orchestrator.translation.config import ENDPOINT
from orchestrator.translation.rows import in_shard, messages_of, read_rows
from orchestrator.translation.template import template_of

TOKENS_PER_ENGLISH = {
    "es": 1.2,
    "fr": 1.21,
    "de": 1.27,
    "ru": 1.38,
    "zh": 1.07,
    "ja": 1.34,
    "th": 1.89,
    "sw": 1.54,
    "bn": 3.22,
    "te": 4.91,
}
"""Tokens of a text beside those of its English original, as Qwen3's tokenizer counts MGSM (measured)."""

CHARS_PER_TOKEN = 4.0
REQUESTS_PER_ROW = 1.1
"""Requests for a row, retries included: a guess until stages have run."""


def needs(config: Config) -> list[Need]:
    """Return the endpoint's address and key in the environment, or the local model."""
    if config.engine == ENDPOINT:
        from orchestrator.translation.endpoint import missing

        settings = config.endpoint
        problem = missing(settings.url_env, settings.key_env)
        advice = (
            f"export {settings.url_env}=https://HOST/v1 {settings.key_env}=..., where the workers run too"
        )
        return [Need(what="translation endpoint", problem=problem, advice=advice)]
    path = config.model.path
    revision = config.model.revision or "main"
    found = engine_packages(config.engine)
    if not is_hub_id(path):
        return [*found, Need(what=f"model.path={path}", problem=_problem(Path(path), config.max_tokens))]
    arguments = {"repo_id": path, "revision": revision}
    problem = missing_files(path, revision)
    what = f"model {path}@{revision}"
    return [*found, Need(what=what, problem=problem, fetch=FETCH_MODEL, arguments=arguments)]


def _problem(folder: Path, max_tokens: int) -> str:
    """Return what is wrong with a local model, or with its length beside the longest reply."""
    if problem := problem_of(folder, 0):
        return problem
    context_tokens = model_folder.inspect(folder).context_tokens
    if context_tokens is not None and context_tokens <= max_tokens:
        return f"{context_tokens} positions are no more than max_tokens={max_tokens}: set fewer"
    return ""


class _Size(NamedTuple):
    """A shard's distinct rows, and the English characters of requests and of the texts in them."""

    num_rows: int
    request_chars: int
    text_chars: int


def estimate(
    config: Config, *, label: str, hardware: Hardware, retention: str, measured: Measured
) -> Estimate:
    """Return the requests and tokens of one shard in one language."""
    language, _, shard = label.partition(".")
    path = home_expanded(config.source.path)
    size = _sizes(path, config.task, config.num_shards, stamps(path))[int(shard)]
    known = measured.once(_measured)
    per_row = known.get("requests", REQUESTS_PER_ROW)
    prompt = size.request_chars / CHARS_PER_TOKEN * per_row
    completion = size.text_chars / CHARS_PER_TOKEN * TOKENS_PER_ENGLISH[language] * per_row
    notes = (
        f"{CHARS_PER_TOKEN:g} characters of English a token, and tokens of other languages as in MGSM",
        f"{per_row:.2f} requests a row" + (", as measured" if known else ", retries included"),
    )
    return Estimate(
        num_requests=round(size.num_rows * per_row),
        prompt_tokens=round(prompt),
        completion_tokens=round(completion),
        assumptions=notes,
        measured=bool(known),
    )


def _measured(measured: Measured) -> Mapping[str, float]:
    """Return the requests a row of finished stages that were not answered by the cache."""
    rows = [row for one in measured.get("translate", ()) for row in one.rows if not row["num_cached"]]
    num_rows = sum(row["num_distinct"] for row in rows)
    return {"requests": sum(row["num_requests"] for row in rows) / num_rows} if num_rows else {}


@functools.lru_cache(maxsize=4)
def _sizes(path: Path, task: str, num_shards: int, stamped: tuple[Stamp, ...]) -> list[_Size]:
    """Return the size of each shard; `stamped` is part of the cache's key only."""
    rows = list({row.digest: row for row in read_rows(path, task)}.values())
    sizes = []
    for shard in range(num_shards):
        templates = [template_of(row.line) for row in in_shard(rows, shard, num_shards)]
        sizes.append(
            _Size(
                len(templates),
                sum(sum(len(m["content"]) for m in messages_of(t, "es")) for t in templates),
                sum(len(json.dumps(t.originals, ensure_ascii=False)) for t in templates),
            )
        )
    return sizes
