"""Specs of the fine-tuning stages: what each reads, uses and waits for.

The module has literal constants only, so that planning imports neither torch nor transformers. A key in
`reads` is part of a stage's identity. A key in `uses` states where or how to compute, and does not change the
meaning of the result.
"""

from __future__ import annotations

from orchestrator.stage import StageSpec

_PRELOAD = ("torch", "transformers", "orchestrator.sft.preload")
_TASK = ("task.name", "task.target")
_REGISTERED = {"task.target": None}
_TRAIN_ITEMS = ("items.source", "items.seed", "items.num_validation", "items.train_fingerprint")
_DATASET = ("items.dir", "items.cache_dir", "items.cached")
_MODEL_PATH = ("model.path", "model.revision")
_REMEDIED = ("trainer.micro_batch_divisor", "trainer.always_recompute")

TOKENIZER = StageSpec(
    run="orchestrator.sft.tokenizer:main",
    name="tokenizer",
    reads=("model.family", "model.architecture.vocab_size", "model.tokenizer"),
    skip="model.path!=null",
    preload=_PRELOAD,
)
"""A byte-level BPE tokenizer, one per family; for tiny models only."""

BASE = StageSpec(
    run="orchestrator.sft.base:main",
    name="base",
    reads=("model.family", "model.architecture", "model.pretraining"),
    uses=("device",),
    after=("tokenizer",),
    skip="model.path!=null",
    preload=_PRELOAD,
)
"""A tiny model pretrained on task-free text, shared by all cells of that model."""

PREPARE = StageSpec(
    run="orchestrator.sft.prepare:main",
    name="prepare",
    reads=(
        *_TASK,
        *_TRAIN_ITEMS,
        "items.num_train",
        "trainer.max_length_tokens",
        "model.fingerprint",
    ),
    uses=("items.train_dir", *_DATASET, *_MODEL_PATH),
    # A task of the registry has no target, which leaves the digest as it was before there were targets.
    neutral=_REGISTERED,
    after=("tokenizer",),
    each={"language": "languages"},
    skip="languages=",
    preload=_PRELOAD,
    needs="orchestrator.sft.needs:of_cell",
)
"""One tokenised shard of one language, shared by all mixtures that contain it."""

TRAIN = StageSpec(
    run="orchestrator.sft.train:main",
    name="train",
    version=2,
    reads=(
        "seed",
        "languages",
        "trainer.learning_rate",
        "trainer.num_epochs",
        "trainer.global_batch_size",
        "trainer.warmup_share",
        "trainer.weight_decay",
        "trainer.max_grad_norm",
        "trainer.precision",
        "model.fingerprint",
    ),
    uses=(
        # These divide the same step differently. Its gradient is the same up to rounding, so none is hashed.
        "trainer.micro_batch_size",
        "trainer.micro_batch_tokens",
        "trainer.cpu_limit_tokens",
        "trainer.gradient_checkpointing",
        "trainer.num_processes",
        "trainer.sharding",
        "trainer.loss_chunk_tokens",
        "trainer.compile",
        "trainer.deterministic",
        *_REMEDIED,
        "device",
        *_MODEL_PATH,
    ),
    after=("tokenizer", "base", "prepare"),
    skip="languages=",
    preload=_PRELOAD,
    estimate="orchestrator.sft.estimate:train",
    needs="orchestrator.sft.needs:of_cell",
    gated_by=("rehearse",),
)
"""Fine-tuning on the mixture of shards: the weights of every epoch."""

TRAINING_REMEDIES = {
    "remedies": {
        "oom_gpu": (
            {"double": "trainer.micro_batch_divisor", "times": 3},
            {"set": {"trainer.always_recompute": True}},
            {"suggest": "more GPUs a cell: hardware.max_gpus, or gpus in launcher.resources"},
            {"suggest": "a smaller trainer.max_length_tokens, which leaves long rows out"},
        ),
        "nan": ({"suggest": "a smaller trainer.learning_rate, or trainer.precision=fp32"},),
    },
    "alike": ("model", "task", "trainer", "device"),
}
"""Changes to what `TRAIN` and `REHEARSE` use when a GPU's memory does not suffice.

Both declare the same, so training starts where its rehearsal fitted. The number of micro-batches of a step
grows as they become smaller, because a step has `trainer.global_batch_size` rows however it is divided.
"""

EVALUATE = StageSpec(
    run="orchestrator.sft.evaluate:main",
    name="evaluate",
    version=3,
    reads=(
        "seed",
        "languages",
        "model.name",
        "model.family",
        "model.fingerprint",
        *_TASK,
        *_TRAIN_ITEMS,
        "items.num_test",
        "items.test_fingerprint",
        "evaluation.languages",
        "evaluation.max_new_tokens",
        "evaluation.engine",
        "evaluation.precision",
        # Hashed, unlike training's micro-batch: in bf16 it may decide which token is the most likely one.
        "evaluation.batch_size",
    ),
    uses=(
        "items.train_dir",
        "items.test_dir",
        *_DATASET,
        "evaluation.num_processes",
        "device",
        *_MODEL_PATH,
    ),
    # These settings came later. At these values they leave earlier digests as they were.
    neutral={"evaluation.engine": "transformers", "evaluation.precision": "fp32", **_REGISTERED},
    after=("tokenizer", "base", "train"),
    preload=_PRELOAD,
    estimate="orchestrator.sft.estimate:evaluate",
    needs="orchestrator.sft.needs:of_cell",
    gated_by=("rehearse",),
)
"""Generation and scoring: select an epoch by validation accuracy, then test it."""

REHEARSE = StageSpec(
    run="orchestrator.sft.rehearse:main",
    name="rehearse",
    reads=(
        "model.name",
        "model.family",
        "model.fingerprint",
        *_TASK,
        *_TRAIN_ITEMS,
        "items.num_test",
        "items.test_fingerprint",
        # Also what divides a step: another micro-batch takes other memory.
        *(key for key in (*TRAIN.reads, *TRAIN.uses) if key.startswith("trainer.") and key not in _REMEDIED),
        "trainer.max_length_tokens",
        "evaluation.max_new_tokens",
        "evaluation.engine",
        "evaluation.precision",
        "evaluation.batch_size",
    ),
    uses=(*EVALUATE.uses, "evaluation.languages", *_REMEDIED),
    neutral=_REGISTERED,
    after=("tokenizer", "base", "prepare"),
    preload=_PRELOAD,
    limit_s=3600.0,
    estimate="orchestrator.sft.estimate:rehearse",
    needs="orchestrator.sft.needs:of_cell",
)
"""The first steps of training and evaluation on the longest rows, once for a model, task and trainer."""

EVALUATION_REMEDIES = {
    "remedies": {
        "oom_gpu": ({"suggest": "a smaller evaluation.batch_size, with which some texts may differ"},),
    },
    "alike": (),
}
"""What could be done about a failure of `EVALUATE`; nothing that it uses takes less memory."""

EVALUATE_BEFORE = (
    StageSpec(
        run=EVALUATE.run,
        name=EVALUATE.name,
        version=2,
        reads=tuple(key for key in EVALUATE.reads if key != "evaluation.batch_size"),
        neutral=EVALUATE.neutral,
        after=EVALUATE.after,
    ),
)
"""Earlier versions of `EVALUATE` whose predictions are scored again instead of generated again."""
