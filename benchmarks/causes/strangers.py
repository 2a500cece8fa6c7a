"""Failures of frameworks in the form in which strangers reported them: held out, no rule is mended by them.

The texts follow reports of public projects, with other names and numbers. Each was written down with its
cause before the rules had judged any; `causes.reported` had been used to mend them by then.
"""

from __future__ import annotations

from typing import Any

from causes.programs import failure, printed
from causes.reported import BEGUN, LIB, traced


# The user's config
@failure
def devices_of_lightning(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/lightning/fabric/utilities/device_parser.py _sanitize_gpu_ids",
        "lightning.fabric.utilities.exceptions.MisconfigurationException: You requested gpu: [0, 1]\n But "
        "your "
        "machine only has: [0]",
    )


@failure
def refused_by_sbatch(config: Any) -> object:  # noqa: D103
    printed(
        "sbatch: error: CPU count per node can not be satisfied\nsbatch: error: Batch job submission failed: "
        "Requested node configuration is not available"
    )


@failure
def strategies_of_trainer(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/transformers/training_args.py __post_init__",
        "ValueError: --load_best_model_at_end requires the save and eval strategy to match, but found\n- "
        "Evaluation strategy: no\n- Save strategy: steps",
    )


@failure
def modules_of_peft(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/peft/tuners/tuners_utils.py inject_adapter",
        "ValueError: Target modules {'q_projj'} not found in the base model. Please check the target modules "
        "and try again.",
    )


@failure
def token_of_hub(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/huggingface_hub/utils/_headers.py get_token_to_send",
        "huggingface_hub.errors.LocalTokenNotFoundError: Token is required (`token=True`), but no token "
        "found.",
    )


@failure
def image_of_docker(config: Any) -> object:  # noqa: D103
    printed(
        "Unable to find image 'org/train:latest' locally\ndocker: Error response from daemon: pull access "
        "denied for org/train, repository does not exist or may require 'docker login'.\n\nRun 'docker run "
        "--help' for more information",
        125,
    )


@failure
def denied_by_gsutil(config: Any) -> object:  # noqa: D103
    printed(
        "ServiceException: 401 Anonymous caller does not have storage.objects.get access to the Google Cloud "
        "Storage object."
    )


# The user's data
@failure
def shard_of_webdataset(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/webdataset/tariterators.py tar_file_iterator",
        "tarfile.ReadError: (\"unexpected end of data @ <_io.BufferedReader name='00000022.tar'>\", "
        "{'__url__':"
        " '00000022.tar'})",
    )


@failure
def page_for_shard(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/webdataset/cache.py check_tar_format",
        "ValueError: ('/cache/000000.tar (gs://bucket/000000.tar) is not a tar archive, but a HTML document, "
        "contains b\"<html>\"', 'gs://bucket/000000.tar')",
    )


@failure
def records_of_tensorflow(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/tensorflow/python/framework/ops.py raise_from_not_ok_status",
        "tensorflow.python.framework.errors_impl.DataLossError: {{function_node __wrapped__IteratorGetNext}} "
        "corrupted record at 0 [Op:IteratorGetNext]",
    )


@failure
def group_of_hdf5(config: Any) -> object:  # noqa: D103
    printed(
        f'{BEGUN}  File "train.py", line 7, in load\n    x = store["matrix"]\n  File "h5py/_objects.pyx", '
        f"line "
        '54, in h5py._objects.with_phil.wrapper\n  File "h5py/h5o.pyx", line 190, in '
        "h5py.h5o.open\nKeyError: "
        "\"Unable to synchronously open object (object 'matrix' doesn't exist)\""
    )


@failure
def split_of_datasets(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/datasets/arrow_reader.py read",
        'ValueError: Instruction "train" corresponds to no data!',
    )


@failure
def sound_of_soundfile(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/soundfile.py _open",
        "soundfile.LibsndfileError: Error opening 'a.flac': Format not recognised.",
    )


@failure
def model_of_sentencepiece(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/sentencepiece/__init__.py LoadFromFile",
        "RuntimeError: Internal: src/sentencepiece_processor.cc(1101) [model_proto->ParseFromArray(serialized"
        ".data(), serialized.size())]",
    )


@failure
def picture_of_opencv(config: Any) -> object:  # noqa: D103
    traced(
        "train.py load",
        "cv2.error: OpenCV(4.8.0) /io/opencv/modules/imgproc/src/color.cpp:182: error: (-215:Assertion "
        "failed)"
        " !_src.empty() in function 'cvtColor'",
    )


# The user's code
@failure
def pickled_function(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        "/usr/lib/python3.11/multiprocessing/reduction.py dump",
        "_pickle.PicklingError: Can't pickle <function collate at 0x7f1>: attribute lookup collate on "
        "__main__ "
        "failed",
    )


@failure
def unused_parameters(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/torch/nn/parallel/distributed.py forward",
        "RuntimeError: Expected to have finished reduction in the prior iteration before starting a new one. "
        "This error indicates that your module has parameters that were not used in producing loss.",
    )


@failure
def traced_bool(config: Any) -> object:  # noqa: D103
    traced(
        "train.py step",
        "jax.errors.TracerBoolConversionError: Attempted boolean conversion of traced array with shape "
        "bool[].",
    )


@failure
def shapes_of_tensorflow(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/keras/src/utils/traceback_utils.py error_handler",
        "tensorflow.python.framework.errors_impl.InvalidArgumentError: Graph execution error:\n\nDetected at "
        "node 'Equal' defined at (most recent call last):\nNode: 'Equal'\nIncompatible shapes: [32] vs. "
        "[32,10]",
    )


@failure
def checks_of_scaler(config: Any) -> object:  # noqa: D103
    traced(
        "train.py main",
        f"{LIB}/torch/amp/grad_scaler.py step",
        "AssertionError: No inf checks were recorded for this optimizer.",
    )


@failure
def syntax_of_bash(config: Any) -> object:  # noqa: D103
    printed("train.sh: line 9: syntax error near unexpected token `fi'\ntrain.sh: line 9: `fi'", 2)


@failure
def box_of_rich(config: Any) -> object:  # noqa: D103
    width = 90
    printed(
        f"╭{'─' * 30} Traceback (most recent call last) "
        f"{'─' * 25}╮\n│{'/work/train.py:12 in main'.ljust(width)}"
        f"│\n│{'❱ 12 │   loss = step(batch)'.ljust(width)}│\n╰{'─' * width}╯\n"
        "TypeError: step() missing 1 required positional argument: 'mask'"
    )
