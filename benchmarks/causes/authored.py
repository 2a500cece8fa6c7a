"""Failures by another author, who knew no rule: what users of Python and other languages get to see.

The texts are those of the tools: where a report was looked up its address stands above the text, the others
are from the sources of the tool or from memory.
"""

from __future__ import annotations

from typing import Any

from causes.programs import FAILURES, printed


def prints(name: str, text: str, code: int = 1) -> None:
    """Add a failure that prints a text and ends with an exit code."""

    def fail(config: Any) -> object:
        printed(text.strip("\n"), code)

    FAILURES[name] = fail


# The user's config: a number of GPUs that does not divide the model's heads.
# https://github.com/vllm-project/vllm/issues/52435
prints(
    "heads_of_vllm",
    r"""
INFO 06-19 11:30:19 [__init__.py:239] Automatically detected platform cuda.
(APIServer pid=415) INFO 06-19 11:30:25 [api_server.py:1043] vLLM API server version 0.10.1
(APIServer pid=415) Traceback (most recent call last):
(APIServer pid=415)   File "/usr/local/bin/vllm", line 10, in <module>
(APIServer pid=415)     sys.exit(main())
(APIServer pid=415)              ^^^^^^
(APIServer pid=415)   File "/usr/local/lib/python3.12/dist-packages/vllm/engine/arg_utils.py", line 1404, in create_engine_config
(APIServer pid=415)     config = VllmConfig(
(APIServer pid=415)              ^^^^^^^^^^^
(APIServer pid=415)   File "/usr/local/lib/python3.12/dist-packages/pydantic/_internal/_dataclasses.py", line 123, in __init__
(APIServer pid=415)     s.__pydantic_validator__.validate_python(ArgsKwargs(args, kwargs), self_instance=s)
(APIServer pid=415) pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig
(APIServer pid=415)   Value error, Total number of attention heads (28) must be divisible by tensor parallel size (8). [type=value_error, input_value=ArgsKwargs((), {'model_co...additional_config': {}}), input_type=ArgsKwargs]
(APIServer pid=415)     For further information visit https://errors.pydantic.dev/2.11/v/value_error
""",
)

# The user's config: a file of settings that holds a fraction where an integer belongs.
# https://github.com/deepspeedai/DeepSpeed/issues/6525
prints(
    "bucket_of_deepspeed",
    r"""
[2024-08-26 09:58:50,631] [INFO] [config.py:733:__init__] Config mesh_device None world_size = 8
[2024-08-26 09:58:51,320] [INFO] [comm.py:652:init_distributed] cdb=None
/opt/conda/envs/py_3.10/lib/python3.10/site-packages/torch/utils/checkpoint.py:1399: FutureWarning: `torch.cpu.amp.autocast(args...)` is deprecated. Please use `torch.amp.autocast('cpu', args...)` instead.
  with device_autocast_ctx, torch.cpu.amp.autocast(**cpu_autocast_kwargs), recompute_context:  # type: ignore[attr-defined]
[rank2]: Traceback (most recent call last):
[rank2]:   File "/workspace/finetune.py", line 212, in <module>
[rank2]:     main()
[rank2]:   File "/opt/conda/envs/py_3.10/lib/python3.10/site-packages/accelerate/accelerator.py", line 1815, in _prepare_deepspeed
[rank2]:     engine, optimizer, _, lr_scheduler = deepspeed.initialize(**kwargs)
[rank2]:   File "/opt/conda/envs/py_3.10/lib/python3.10/site-packages/deepspeed/runtime/zero/config.py", line 82, in get_zero_config
[rank2]:     return DeepSpeedZeroConfig(**zero_config_dict)
[rank2]:   File "/opt/conda/envs/py_3.10/lib/python3.10/site-packages/pydantic/main.py", line 193, in __init__
[rank2]:     self.__pydantic_validator__.validate_python(data, self_instance=self)
[rank2]: pydantic_core._pydantic_core.ValidationError: 1 validation error for DeepSpeedZeroConfig
[rank2]: stage3_prefetch_bucket_size
[rank2]:   Input should be a valid integer, got a number with a fractional part [type=int_from_float, input_value=15099494.4, input_type=float]
[rank2]:     For further information visit https://errors.pydantic.dev/2.9/v/int_from_float
W0826 09:58:55.410000 140142 torch/distributed/elastic/multiprocessing/api.py:858] Sending process 1203 closing signal SIGTERM
""",
)

# The user's config: parallel sizes that do not fit the number of processes (megatron/training/arguments.py).
prints(
    "size_of_megatron",
    r"""
using world size: 8, data-parallel size: 0, context-parallel size: 1, tensor-model-parallel size: 8, pipeline-model-parallel size: 2
WARNING: overriding default arguments for tokenizer_type:SentencePieceTokenizer with tokenizer_type:GPT2BPETokenizer
Traceback (most recent call last):
  File "/workspace/Megatron-LM/pretrain_gpt.py", line 264, in <module>
    pretrain(
  File "/workspace/Megatron-LM/megatron/training/initialize.py", line 67, in initialize_megatron
    validate_args(args, args_defaults)
  File "/workspace/Megatron-LM/megatron/training/arguments.py", line 241, in validate_args
    assert args.world_size % total_model_size == 0, (
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
AssertionError: world size (8) is not divisible by total_model_size (total_model_size=16)
""",
)

# The user's config: a flag that no class of arguments has (transformers/hf_argparser.py).
prints(
    "flag_of_transformers",
    r"""
2025-01-14 09:12:01.337201: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on. You may see slightly different numerical results due to floating-point round-off errors from different computation orders.
Traceback (most recent call last):
  File "/home/u/exp/run_mlm.py", line 693, in <module>
    main()
  File "/home/u/exp/run_mlm.py", line 241, in main
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
  File "/home/u/.venv/lib/python3.11/site-packages/transformers/hf_argparser.py", line 348, in parse_args_into_dataclasses
    raise ValueError(f"Some specified arguments are not used by the HfArgumentParser: {remaining_args}")
ValueError: Some specified arguments are not used by the HfArgumentParser: ['--do_trian']
""",
)

# The user's config: no key for the tracker was configured.
prints(
    "key_of_wandb",
    r"""
wandb: Using wandb-core as the SDK backend.  Please refer to https://wandb.me/wandb-core for more information.
wandb: WARNING The `run_name` is currently set to the same value as `TrainingArguments.output_dir`. If this was not intended, please specify a different run name by setting the `TrainingArguments.run_name` parameter.
Traceback (most recent call last):
  File "/scratch/u/train.py", line 88, in <module>
    wandb.init(project="mixtures", config=vars(args))
  File "/home/u/miniconda3/envs/t/lib/python3.11/site-packages/wandb/sdk/wandb_init.py", line 1266, in init
    wandb._sentry.reraise(e)
  File "/home/u/miniconda3/envs/t/lib/python3.11/site-packages/wandb/sdk/wandb_login.py", line 249, in prompt_api_key
    raise UsageError("api_key not configured (no-tty). call " + directive)
wandb.errors.errors.UsageError: api_key not configured (no-tty). call wandb.login(key=[your_api_key])
""",
)

# The user's config: the name of an environment (conda/exceptions.py).
prints(
    "environment_of_conda",
    r"""
Loading modules: gcc/12.3.0 cuda/12.4

EnvironmentNameNotFound: Could not find conda environment: nemo24
You can list all discoverable environments with `conda info --envs`.

""",
)

# The user's config: the name of a module of the cluster.
prints(
    "module_of_lmod",
    r"""
Lmod has detected the following error:  The following module(s) are unknown: "cuda/12.9"

Please check the spelling or version number. Also try "module spider ..."
It is also possible your cache file is out-of-date; it may help to try:
  $ module --ignore_cache load "cuda/12.9"

Also make sure that all modulefiles written in TCL start with the string #%Module

""",
)

# The user's config: a version that was never released; the index did answer.
prints(
    "version_of_pip",
    r"""
Looking in indexes: https://pypi.org/simple, https://download.pytorch.org/whl/cu124
Collecting einops==0.8.0 (from -r requirements.txt (line 1))
  Using cached einops-0.8.0-py3-none-any.whl.metadata (12 kB)
ERROR: Could not find a version that satisfies the requirement torch==2.5.9 (from versions: 2.4.0, 2.4.1, 2.5.0, 2.5.1, 2.6.0)
ERROR: No matching distribution found for torch==2.5.9

[notice] A new release of pip is available: 24.0 -> 25.0.1
[notice] To update, run: pip install --upgrade pip
""",
)

# The user's data: an index file of another format (megatron/core/datasets/indexed_dataset.py).
prints(
    "header_of_megatron",
    r"""
> building train, validation, and test datasets for GPT ...
INFO:megatron.core.datasets.indexed_dataset:Load the _IndexReader from /data/c4_text_document.idx
Traceback (most recent call last):
  File "/workspace/Megatron-LM/pretrain_gpt.py", line 264, in <module>
    pretrain(
  File "/workspace/Megatron-LM/megatron/core/datasets/indexed_dataset.py", line 461, in initialize
    self.index = _IndexReader(idx_path, self.multimodal)
  File "/workspace/Megatron-LM/megatron/core/datasets/indexed_dataset.py", line 247, in __init__
    assert header == _INDEX_HEADER, f"bad header, cannot read: {idx_path}"
           ^^^^^^^^^^^^^^^^^^^^^^^
AssertionError: bad header, cannot read: /data/c4_text_document.idx
""",
)

# The user's data: a download whose checksum is another.
prints(
    "checksum_of_tfds",
    r"""
Downloading and preparing dataset 161.17 MiB (download: 161.17 MiB, generated: 132.40 MiB, total: 293.58 MiB) to /scratch/u/tfds/cats/4.0.1...
Dl Completed...: 100%|##########| 1/1 [00:21<00:00, 21.34s/ url]
Traceback (most recent call last):
  File "train_flax.py", line 61, in <module>
    ds = tfds.load("cats", split="train")
  File "/home/u/.venv/lib/python3.10/site-packages/tensorflow_datasets/core/download/download_manager.py", line 811, in _validate_checksums
    raise NonMatchingChecksumError(msg)
tensorflow_datasets.core.download.download_manager.NonMatchingChecksumError: Artifact https://example.org/cats.zip, downloaded to /scratch/u/tfds/downloads/cats.zip.tmp.1f3a/cats.zip, has wrong checksum:
* Expected: UrlInfo(size=161.17 MiB, checksum='b7974bd00a84a99921f36ee4403f089853777b5ae8d151c76a86e64900334af9', filename='cats.zip')
* Got: UrlInfo(size=1.21 KiB, checksum='4bd9bd4a4c1f4bcd5bd4aac0f7b3f0c8d1b35d6b0bcbff8dc0bb3b1b8e3a7e42', filename='cats.zip')
To debug, see: https://www.tensorflow.org/datasets/overview#fixing_nonmatchingchecksumerror
""",
)

# The user's data: a field of a file that `COPY` refuses.
prints(
    "copy_of_postgres",
    r"""
psql:load.sql:1: NOTICE:  relation "runs" already exists, skipping
CREATE TABLE
psql:load.sql:4: ERROR:  invalid input syntax for type double precision: "n/a"
CONTEXT:  COPY runs, line 4, column loss: "n/a"
""",
    3,
)

# The user's data: a damaged file.
prints(
    "header_of_h5py",
    r"""
Traceback (most recent call last):
  File "/home/u/proj/train.py", line 41, in <module>
    with h5py.File(args.features, "r") as f:
         ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/home/u/.venv/lib/python3.11/site-packages/h5py/_hl/files.py", line 231, in make_fid
    fid = h5f.open(name, flags, fapl=fapl)
          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "h5py/_objects.pyx", line 54, in h5py._objects.with_phil.wrapper
  File "h5py/_objects.pyx", line 55, in h5py._objects.with_phil.wrapper
  File "h5py/h5f.pyx", line 106, in h5py.h5f.open
OSError: Unable to synchronously open file (bad object header version number)
""",
)

# The user's data: a film that no decoder opens.
prints(
    "film_of_decord",
    r"""
  0%|          | 0/1000 [00:00<?, ?it/s][mov,mp4,m4a,3gp,3g2,mj2 @ 0x55d0c7e6d2c0] moov atom not found
Traceback (most recent call last):
  File "/scratch/u/videomae/run_class_finetuning.py", line 612, in <module>
    main(opts, ds_init)
  File "/home/u/.venv/lib/python3.10/site-packages/decord/video_reader.py", line 57, in __init__
    raise RuntimeError("Error reading " + uri + "...")
RuntimeError: Error reading /data/k400/train/abseiling/_4YTwq0-73Y.mp4...
""",
)

# A loss that is not finite, in the words of MAE, DETR and DeiT (engine_pretrain.py).
prints(
    "loss_of_mae",
    r"""
[10:21:44.120377] Epoch: [12]  [ 620/1251]  eta: 0:05:31  lr: 0.000142  loss: 0.4412 (0.4471)  time: 0.5178  data: 0.0003  max mem: 21312
[10:21:54.501231] Epoch: [12]  [ 640/1251]  eta: 0:05:20  lr: 0.000142  loss: 0.4409 (0.4469)  time: 0.5190  data: 0.0002  max mem: 21312
[10:21:58.918822] Loss is nan, stopping training
""",
)

# A loss that is not finite. https://github.com/alibaba/Pai-Megatron-Patch/issues/680
prints(
    "loss_of_megatron",
    r"""
 iteration        1/    5000 | consumed samples:          128 | elapsed time per iteration (ms): 140930.2 | throughput per GPU (TFLOP/s/GPU): 0.3 | learning rate: 5.000000E-08 | global batch size:   128 | lm loss: 1.196676E+01 | load_balancing_loss: 5.185859E-01 | loss scale: 1.0 | grad norm: nan | number of skipped iterations:   0 | number of nan iterations:   0 |
[rank114]: Traceback (most recent call last):
[rank114]:   File "/workspace/Megatron-LM/pretrain_gpt.py", line 264, in <module>
[rank114]:     pretrain(
[rank114]:   File "/workspace/Megatron-LM/pretrain_gpt.py", line 162, in loss_func
[rank114]:     assert not local_loss.isnan(), (
[rank114]: AssertionError: Rank 114: found NaN in local forward loss calculation. Device: 2, node: gpu014
""",
)

# A gradient that is not finite. https://github.com/facebookresearch/fairseq/issues/4118
prints(
    "gradients_of_fairseq",
    r"""
2022-01-09 10:25:50 | INFO | fairseq.trainer | begin training epoch 1
2022-01-09 10:25:58 | INFO | fairseq.nan_detector | Detected nan/inf grad norm, dumping norms...
2022-01-09 10:25:58 | INFO | fairseq.nan_detector | norms: {'encoder.embed_tokens.weight': nan, 'encoder.layers.0.fc1.weight': nan}
2022-01-09 10:25:58 | INFO | fairseq.nan_detector | gradients: {'encoder.layers.0.fc1.weight': tensor([[nan, nan, nan]], device='cuda:0')}
Traceback (most recent call last):
  File "/home/u/fairseq/fairseq/trainer.py", line 872, in train_step
    raise FloatingPointError("gradients are Nan/Inf")
FloatingPointError: gradients are Nan/Inf

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/home/u/.venv/bin/fairseq-train", line 8, in <module>
    sys.exit(cli_main())
  File "/home/u/fairseq/fairseq/nan_detector.py", line 60, in __exit__
    raise FloatingPointError("gradients are Nan/Inf")
FloatingPointError: gradients are Nan/Inf
""",
)

# A value that is not finite. https://github.com/jax-ml/jax/issues/25299
prints(
    "debug_nans_of_jax",
    r"""
Invalid nan value encountered in the output of a jax.jit function. Calling the de-optimized version.
Traceback (most recent call last):
  File "/home/u/flax/train.py", line 27, in <module>
    state, loss = train_step(state, batch)
                  ^^^^^^^^^^^^^^^^^^^^^^^^
FloatingPointError: invalid value (nan) encountered in jit(train_step). Because jax_config.debug_nans.value and/or config.jax_debug_infs is set, the de-optimized function (i.e., the function as if the `jit` decorator were removed) was called in an attempt to get a more precise error message. However, the de-optimized function did not produce invalid values during its execution.
--------------------
For simplicity, JAX has removed its internal frames from the traceback of the following exception. Set JAX_TRACEBACK_FILTERING=off to include these.
""",
)

# A loss that is not finite. https://github.com/tensorflow/models/issues/5516
prints(
    "numerics_of_tensorflow",
    r"""
2024-02-11 12:07:01.883585: I tensorflow/compiler/xla/stream_executor/cuda/cuda_dnn.cc:432] Loaded cuDNN version 8907
Epoch 3/40
  117/1563 [=>............................] - ETA: 38s - loss: 2.0161
Traceback (most recent call last):
  File "train.py", line 184, in <module>
    model.fit(train, epochs=40)
  File "/usr/local/lib/python3.10/dist-packages/keras/src/utils/traceback_utils.py", line 70, in error_handler
    raise e.with_traceback(filtered_tb) from None
tensorflow.python.framework.errors_impl.InvalidArgumentError: Graph execution error:

Detected at node CheckNumerics defined at (most recent call last):
  File "train.py", line 184, in <module>

  File "train.py", line 120, in train_step

LossTensor is inf or nan. : Tensor had NaN values
	 [[{{node CheckNumerics}}]] [Op:__inference_train_function_2214]
""",
)

# A value that is not finite, in an optimizer of R.
prints(
    "optim_of_r",
    r"""
Loading required package: Matrix
Error in optim(start, nll, method = "L-BFGS-B", lower = 1e-06) :
  L-BFGS-B needs finite values of 'fn'
Calls: fit_curve -> optim
In addition: Warning message:
In log(p) : NaNs produced
Execution halted
""",
)
