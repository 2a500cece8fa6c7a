"""The engine for GPUs: vLLM, the optional extra ``vllm``, one instance per process.

Written against vLLM 0.30. It receives and returns tokens, so no tokenizer, chat template or sampling default
of its own applies. vLLM cannot be observed while it generates, so it generates in rounds. The prefix cache
makes it cheap to continue a row in the next round.

vLLM chooses by itself what it computes together, by free memory and by which rows have ended. So its
batch-invariant kernels are always turned on (``VLLM_BATCH_INVARIANT``). They give a row the same tokens in
any batch (https://docs.vllm.ai/en/stable/features/batch_invariance/), and need compute capability 8.0 or
more.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.errors import StageFailure
from orchestrator.sft import runtime
from orchestrator.sft.distributed.nodes import environment
from orchestrator.sft.generators.base import GeneratorSettings, IsOver, in_rounds
from orchestrator.sft.needs import INSTALL_VLLM, has_vllm

ROUND_TOKENS = 64
"""New tokens between two checks whether a row is over."""

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class VllmEngine:
    """See `orchestrator.sft.generators.base.Engine`."""

    is_batched = False

    def __init__(self, settings: GeneratorSettings) -> None:
        if not has_vllm():
            raise StageFailure("config", f"evaluation.engine=vllm, but vllm is not installed: {INSTALL_VLLM}")
        if settings.device.type != "cuda":
            raise StageFailure("config", f"evaluation.engine=vllm needs a GPU, and device={settings.device}")
        self._settings = settings
        self._llm: Any = None

    def load(self, folder: Path) -> None:
        """Start vLLM with the first weights. Later ones replace them in the running instance, in seconds."""
        if self._llm is not None:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
            # Its entries were computed with the previous weights.
            self._llm.reset_prefix_cache()
            return
        from vllm import LLM

        runtime.check_weights(folder)
        with _environment_of(os.environ):
            self._llm = LLM(
                model=str(linked(folder, os.environ)),
                skip_tokenizer_init=True,
                dtype=_DTYPES[self._settings.precision],
                limit_mm_per_prompt={"image": 0},  # the text part of Gemma3 4B only
                enable_prefix_caching=True,
                gpu_memory_utilization=0.85,
                seed=0,
            )

    def generate(
        self, rows: Sequence[Sequence[int]], *, max_new_tokens: int, is_over: IsOver
    ) -> list[list[int]]:
        """Generate in rounds; see `Engine.generate`."""
        return in_rounds(
            self._extend,
            rows,
            eos_token_id=self._settings.eos_token_id,
            max_new_tokens=max_new_tokens,
            round_tokens=ROUND_TOKENS,
            is_over=is_over,
        )

    def _extend(self, rows: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        from vllm import SamplingParams

        greedy = SamplingParams(
            temperature=0.0,
            max_tokens=num_tokens,
            stop_token_ids=[self._settings.eos_token_id],
            detokenize=False,
        )
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        outputs = self._llm.generate(prompts, greedy, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


def linked(folder: Path, env: Mapping[str, str]) -> Path:
    """Return a link to a folder, whose path is the same for all cells that a GPU generates for.

    vLLM keeps what it compiles under the path of the model. With the folders' own paths, each cell would
    compile again, for minutes.

    Args:
        folder: of the model.
        env: in which CUDA_VISIBLE_DEVICES names the GPU, see `own_gpu`.
    """
    place = Path(tempfile.gettempdir(), f"polysweep-vllm-{os.getuid()}")
    place.mkdir(mode=0o700, exist_ok=True)
    if place.is_symlink() or place.stat().st_uid != os.getuid():
        raise StageFailure("bad_node", f"{place} belongs to another user")
    link = place / f"model-{env.get('CUDA_VISIBLE_DEVICES', '0').replace('/', '-')}"
    # Replaced in one step: an engine that starts meanwhile on another GPU has a link of its own.
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.absolute(), target_is_directory=True)
    temporary.replace(link)
    return link


def own_gpu(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which vLLM has this rank's GPU alone, and no variables of torchrun.

    vLLM starts processes of its own. With the rank's variables they would join the wrong process group.
    """
    visible = [gpu for gpu in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    rank = env.get("LOCAL_RANK", "0")
    gpu = visible[int(rank)] if visible else rank
    return {
        **environment(env),
        "CUDA_VISIBLE_DEVICES": gpu,
        "VLLM_BATCH_INVARIANT": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }


@contextmanager
def _environment_of(env: os._Environ[str]) -> Iterator[None]:
    """Give vLLM its environment while it starts, and restore this process's own on exit."""
    before = dict(env)
    own = own_gpu(before)
    for name in before.keys() - own.keys():
        del env[name]
    env.update(own)
    try:
        yield
    finally:
        env.clear()
        env.update(before)
