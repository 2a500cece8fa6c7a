"""Programs that fail in other shapes than those of `causes.shapes`: held out, no rule is mended by them."""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from causes.programs import (
    failure,
    in_task,
    noted,
    printed,
    python,
    ran,
    scratch,
    terminated,
)

GO = "\n\ngoroutine 1 [running]:\nmain.main()\n\t/work/main.go:12 +0x1d\nexit status 2"
JULIA = "\nStacktrace:\n [1] train()\n   @ Main /work/train.jl:7\nin expression starting at /work/train.jl:9"
JAVA = "\n\tat org.sweep.Train.step(Train.java:40)\n\tat org.sweep.Train.main(Train.java:12)"


def in_executor(step: Any, *arguments: Any) -> object:  # noqa: D103
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(step, *arguments).result()


def spawned(text: str) -> object:
    """Run a rank of torch, which raises what the text of Python raises."""
    program = (
        f"import torch, torch.multiprocessing\n\ndef rank(number):\n    {text}\n\n"
        "if __name__ == '__main__':\n    torch.multiprocessing.spawn(rank, nprocs=1)\n"
    )
    python("train.py", program)


# The user's config
@failure
def group_of_settings(config: Any) -> object:  # noqa: D103
    from omegaconf import OmegaConf

    settings = OmegaConf.create({"lr": "???"})
    return in_task(lambda: settings.lr)


@failure
def hydra_app(config: Any) -> object:  # noqa: D103
    text = (
        "import hydra\n\n@hydra.main(version_base=None, config_path='.', config_name='config')\n"
        "def main(config):\n    pass\n\nmain()\n"
    )
    path = Path(scratch("train.py", text.encode()))
    (path.parent / "config.yaml").write_text("lr: 1\n")
    import sys

    ran(sys.executable, str(path), "learning_rate=2")


@failure
def rust_option(config: Any) -> object:  # noqa: D103
    printed(
        "error: invalid value 'adamw' for '--optimizer <OPTIMIZER>'\n  [possible values: adam, sgd]\n\n"
        "For more information, try '--help'.",
        2,
    )


@failure
def shell_option(config: Any) -> object:  # noqa: D103
    ran("bash", "-c", "set -e; ls --learning-rate=2; echo training")


# The user's data
@failure
def nested_group_of_rows(config: Any) -> object:  # noqa: D103
    return in_task(lambda: in_thread_group(Path(scratch("a.txt", b"\xff\xfe\xfa"))))


def in_thread_group(path: Path) -> object:  # noqa: D103
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ExceptionGroup("rows", [error]) from None


@failure
def executor_of_archives(config: Any) -> object:  # noqa: D103
    import zipfile

    return in_executor(zipfile.ZipFile, scratch("a.zip", b"<html>404</html>"))


@failure
def julia_csv(config: Any) -> object:  # noqa: D103
    printed('ERROR: LoadError: ArgumentError: "train.csv" is not a valid file or doesn\'t exist' + JULIA)


@failure
def r_json(config: Any) -> object:  # noqa: D103
    printed(
        "Error: lexical error: invalid char in json text.\n                                       <html>404\n"
        "                     (right here) ------^\nExecution halted"
    )


@failure
def rust_utf8(config: Any) -> object:  # noqa: D103
    printed(
        "thread 'main' panicked at src/main.rs:5:51:\ncalled `Result::unwrap()` on an `Err` value: Error { "
        'kind: InvalidData, message: "stream did not contain valid UTF-8" }',
        101,
    )


@failure
def shell_archive(config: Any) -> object:  # noqa: D103
    ran("bash", "-c", f"set -e; tar xzf {scratch('a.tgz', b'<html>404</html>')}; echo training")


@failure
def handled_rows(config: Any) -> object:  # noqa: D103
    try:
        return json.loads("<html>")
    except json.JSONDecodeError:
        raise ValueError("row 17 is no JSON")  # noqa: B904


# The user's code
@failure
def star_group(config: Any) -> object:  # noqa: D103
    try:
        return in_task(lambda: undefined_name)  # type: ignore[name-defined]  # noqa: F821
    except* ValueError:
        pass
    return None


@failure
def group_of_anyio(config: Any) -> object:  # noqa: D103
    import anyio

    async def step() -> None:
        [].size  # type: ignore[attr-defined]  # noqa: B018

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(step)

    return anyio.run(main)


def _divide(number: int) -> float:
    return 1 / number


@failure
def executor_of_code(config: Any) -> object:  # noqa: D103
    return in_executor(_divide, 0)


@failure
def julia_method(config: Any) -> object:  # noqa: D103
    printed(
        "ERROR: LoadError: MethodError: no method matching step(::Int64, ::String)\n\nClosest candidates:\n"
        "  step(::Int64, ::Int64)\n   @ Main /work/train.jl:3\n" + JULIA
    )


@failure
def r_type(config: Any) -> object:  # noqa: D103
    printed('Error in x + "1" : non-numeric argument to binary operator\nCalls: step\nExecution halted')


@failure
def cpp_assert(config: Any) -> object:  # noqa: D103
    terminated("train: model.cpp:42: void step(int): Assertion `i < n' failed.")


@failure
def node_js(config: Any) -> object:  # noqa: D103
    printed(
        "/app/train.js:10\n  return config.model.lr;\n                      ^\n\nTypeError: Cannot read "
        "properties of undefined (reading 'lr')\n    at train (/app/train.js:10:23)\n    at Object.<any> "
        "(/app/train.js:14:1)\n\nNode.js v20.11.0"
    )


@failure
def unittest_code(config: Any) -> object:  # noqa: D103
    text = "import unittest\n\nclass Step(unittest.TestCase):\n    def test(self):\n        [].size\n"
    path = Path(scratch("test_step.py", text.encode()))
    import sys

    os.chdir(path.parent)
    ran(sys.executable, "-m", "unittest", "test_step")


@failure
def spawned_code(config: Any) -> object:  # noqa: D103
    return spawned("torch.ones(2).no_such_method()")


@failure
def pytest_short(config: Any) -> object:  # noqa: D103
    text = "import pytest\n\n@pytest.fixture\ndef x():\n    return {}.lr\n\ndef test_x(x):\n    pass\n"
    python("test_x.py", text, "-m pytest -p no:cacheprovider --tb=short -q")


@failure
def indentation(config: Any) -> object:  # noqa: D103
    python("train.py", "def main():\nreturn 1\n")


@failure
def java_null(config: Any) -> object:  # noqa: D103
    printed(
        'Exception in thread "main" java.lang.NullPointerException: Cannot invoke "Model.step()" because '
        '"this.model" is null' + JAVA
    )


@failure
def go_index(config: Any) -> object:  # noqa: D103
    printed("panic: runtime error: index out of range [7] with length 3" + GO, 2)


# Memory
@failure
def spawned_gpu_memory(config: Any) -> object:  # noqa: D103
    return spawned("raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')")


@failure
def cuda_check_of_memory(config: Any) -> object:  # noqa: D103
    printed('CUDA error at train.cu:77 code=2(cudaErrorMemoryAllocation) "cudaMalloc(&weights, bytes)"')


@failure
def noted_gpu_memory(config: Any) -> object:  # noqa: D103
    import torch

    noted(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "batch of 64")


@failure
def group_of_memory(config: Any) -> object:  # noqa: D103
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.RLIM_INFINITY))
    return in_task(lambda: bytearray(16 << 30))


@failure
def go_memory(config: Any) -> object:  # noqa: D103
    printed("fatal error: runtime: out of memory\n\nruntime stack:\nruntime.throw({0x4c5a2f, 0x16})" + GO, 2)


@failure
def julia_memory(config: Any) -> object:  # noqa: D103
    printed("ERROR: LoadError: OutOfMemoryError()" + JULIA)


@failure
def shell_memory(config: Any) -> object:  # noqa: D103
    printed("train.sh: fork: retry: Resource unavailable\ntrain.sh: fork: Cannot allocate memory", 254)


# Numbers
def _nan(number: int) -> int:
    return int(float("nan")) * number


@failure
def executor_of_nan(config: Any) -> object:  # noqa: D103
    return in_executor(_nan, 1)


@failure
def spawned_nan(config: Any) -> object:  # noqa: D103
    return spawned("raise FloatingPointError('loss is nan')")
