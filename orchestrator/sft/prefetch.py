"""Fetching once, on a machine with a network, what stages then find in the hub's cache.

It is the only place that asks a hub. Imports no torch.
"""

from __future__ import annotations

from orchestrator.errors import InfrastructureError
from orchestrator.sft.needs import missing_files

PATTERNS = ("*.json", "*.safetensors", "tokenizer*", "*.model", "vocab*", "merges.txt", "*.jinja")
"""Weights in one format, configs and tokenizer; no weights of other frameworks."""
PROBE_S = 10.0
"""How long to wait for the hub's first answer."""


def model(*, repo_id: str, revision: str) -> None:
    """Downloads one revision of a model with its tokenizer into the hub's cache.

    Raises:
        InfrastructureError: there is no network, no such revision, or no right to it.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        if not huggingface_hub.constants.HF_HUB_OFFLINE:  # the client itself would try for 24 s, each time
            huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=PROBE_S)
        huggingface_hub.snapshot_download(repo_id, revision=revision, allow_patterns=list(PATTERNS))
    except errors.GatedRepoError as error:
        raise InfrastructureError(
            f"{repo_id} is gated",
            where=_first_line(error),
            fix=f"accept its licence at https://huggingface.co/{repo_id} and set HF_TOKEN",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InfrastructureError(f"the hub has no {repo_id}, or not for you", fix="set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise InfrastructureError(f"{repo_id} has no revision {revision}", fix="model.revision=") from error
    except Exception as error:
        offline = huggingface_hub.constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE is set" if offline else _first_line(error)
        advice = (
            "unset HF_HUB_OFFLINE" if offline else "run it where there is a network, with the same HF_HOME"
        )
        raise InfrastructureError(f"{repo_id} is not to be had from the hub: {why}", fix=advice) from error
    if missing := missing_files(repo_id, revision):
        raise InfrastructureError(f"{repo_id}@{revision} is incomplete: {missing}")


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
