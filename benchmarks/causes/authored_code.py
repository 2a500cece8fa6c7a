"""Failures by another author: the user's code and its installation, in the texts of the tools."""

from __future__ import annotations

from causes.authored import prints

# Code: a package that was built for another numpy.
# https://github.com/rhasspy/wyoming-satellite/issues/256
prints(
    "built_for_numpy_1",
    r"""

A module that was compiled using NumPy 1.x cannot be run in
NumPy 2.0.2 as it may crash. To support both 1.x and 2.x
versions of NumPy, modules must be compiled with NumPy 2.0.
Some module may need to rebuild instead e.g. with 'pybind11>=2.12'.

If you are a user of the module, the easiest solution will be to
downgrade to 'numpy<2' or try to upgrade the affected module.
We expect that some modules will need time to support NumPy 2.

Traceback (most recent call last):  File "/home/u/proj/train.py", line 9, in <module>
    import cv2
  File "/home/u/.venv/lib/python3.11/site-packages/cv2/__init__.py", line 181, in <module>
    bootstrap()
  File "/home/u/.venv/lib/python3.11/site-packages/cv2/__init__.py", line 153, in bootstrap
    native_module = importlib.import_module("cv2")
  File "/usr/lib/python3.11/importlib/__init__.py", line 126, in import_module
    return _bootstrap._gcd_import(name[level:], package, level)
AttributeError: _ARRAY_API not found
Traceback (most recent call last):
  File "/home/u/proj/train.py", line 9, in <module>
    import cv2
  File "/home/u/.venv/lib/python3.11/site-packages/cv2/__init__.py", line 181, in <module>
    bootstrap()
  File "/home/u/.venv/lib/python3.11/site-packages/cv2/__init__.py", line 153, in bootstrap
    native_module = importlib.import_module("cv2")
                    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
ImportError: numpy.core.multiarray failed to import
""",
)

# Code: a package that was built for another torch.
prints(
    "symbol_of_flash_attention",
    r"""
The cache for model files in Transformers v4.22.0 has been updated. Migrating your old cache. This is a one-time only operation.
Traceback (most recent call last):
  File "/home/u/.venv/lib/python3.10/site-packages/transformers/utils/import_utils.py", line 1778, in _get_module
    return importlib.import_module("." + module_name, self.__name__)
  File "/home/u/.venv/lib/python3.10/site-packages/flash_attn/flash_attn_interface.py", line 10, in <module>
    import flash_attn_2_cuda as flash_attn_cuda
ImportError: /home/u/.venv/lib/python3.10/site-packages/flash_attn_2_cuda.cpython-310-x86_64-linux-gnu.so: undefined symbol: _ZN3c104cuda9SetDeviceEi

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/scratch/u/sft.py", line 3, in <module>
    from transformers import LlamaForCausalLM
  File "/home/u/.venv/lib/python3.10/site-packages/transformers/utils/import_utils.py", line 1780, in _get_module
    raise RuntimeError(
RuntimeError: Failed to import transformers.models.llama.modeling_llama because of the following error (look up to see its traceback):
/home/u/.venv/lib/python3.10/site-packages/flash_attn_2_cuda.cpython-310-x86_64-linux-gnu.so: undefined symbol: _ZN3c104cuda9SetDeviceEi
""",
)

# Code: parameters of another shape (flax/errors.py).
prints(
    "shape_of_flax",
    r"""
I0302 11:02:13.114211 140213 xla_bridge.py:863] Unable to initialize backend 'tpu': INTERNAL: Failed to open libtpu.so: libtpu.so: cannot open shared object file: No such file or directory
jax.errors.SimplifiedTraceback: For simplicity, JAX has removed its internal frames from the traceback of the following exception. Set JAX_TRACEBACK_FILTERING=off to include these.

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/home/u/flax/main.py", line 71, in <module>
    app.run(main)
  File "/home/u/.venv/lib/python3.11/site-packages/absl/app.py", line 308, in run
    _run_main(main, args)
  File "/home/u/flax/model.py", line 33, in __call__
    x = nn.Dense(self.width)(x)
  File "/home/u/.venv/lib/python3.11/site-packages/flax/core/scope.py", line 960, in param
    raise errors.ScopeParamShapeError(
flax.errors.ScopeParamShapeError: Initializer expected to generate shape (784, 256) but got shape (512, 256) instead for parameter "kernel" in "/Dense_0". (https://flax.readthedocs.io/en/latest/api_reference/flax.errors.html#flax.errors.ScopeParamShapeError)
""",
)

# Code: a call that this kind of model refuses.
prints(
    "moved_in_4_bit",
    r"""
`low_cpu_mem_usage` was None, now set to True since model is quantized.
Loading checkpoint shards: 100%|██████████| 2/2 [00:07<00:00,  3.61s/it]
Traceback (most recent call last):
  File "/scratch/u/qlora.py", line 140, in <module>
    model = model.to("cuda")
            ^^^^^^^^^^^^^^^^
  File "/home/u/.venv/lib/python3.11/site-packages/transformers/modeling_utils.py", line 2670, in to
    raise ValueError(
ValueError: `.to` is not supported for `4-bit` or `8-bit` bitsandbytes models. Please use the model as it is, since the model has already been set to the correct devices and casted to the correct `dtype`.
""",
)

# Code: a key that a dictionary lacks, on all ranks, and what follows on it.
prints(
    "key_on_ranks",
    r"""
W0302 10:26:51.212000 2291 torch/distributed/run.py:793] 
W0302 10:26:51.212000 2291 torch/distributed/run.py:793] *****************************************
W0302 10:26:51.212000 2291 torch/distributed/run.py:793] Setting OMP_NUM_THREADS environment variable for each process to be 1 in default, to avoid your system being overloaded, please further tune the variable for optimal performance in your application as needed. 
W0302 10:26:51.212000 2291 torch/distributed/run.py:793] *****************************************
[rank1]: Traceback (most recent call last):
[rank0]: Traceback (most recent call last):
[rank1]:   File "/home/u/t/train.py", line 131, in <module>
[rank0]:   File "/home/u/t/train.py", line 131, in <module>
[rank1]:     main()
[rank0]:     main()
[rank1]:   File "/home/u/t/train.py", line 84, in main
[rank0]:   File "/home/u/t/train.py", line 84, in main
[rank1]:     loss = outputs["losses"].mean()
[rank0]:     loss = outputs["losses"].mean()
[rank1]:            ~~~~~~~^^^^^^^^^^
[rank0]:            ~~~~~~~^^^^^^^^^^
[rank1]: KeyError: 'losses'
[rank0]: KeyError: 'losses'
[rank0]:[W302 10:27:04.117 ProcessGroupNCCL.cpp:1496] Warning: WARNING: destroy_process_group() was not called before program exit, which can leak resources. For more info, please see https://pytorch.org/docs/stable/distributed.html#shutdown (function operator())
W0302 10:27:05.310000 2291 torch/distributed/elastic/multiprocessing/api.py:897] Sending process 2298 closing signal SIGTERM
E0302 10:27:05.512000 2291 torch/distributed/elastic/multiprocessing/api.py:869] failed (exitcode: 1) local_rank: 1 (pid: 2299) of binary: /home/u/.venv/bin/python
Traceback (most recent call last):
  File "/home/u/.venv/bin/torchrun", line 8, in <module>
    sys.exit(main())
             ^^^^^^
  File "/home/u/.venv/lib/python3.11/site-packages/torch/distributed/launcher/api.py", line 269, in launch_agent
    raise ChildFailedError(
torch.distributed.elastic.multiprocessing.errors.ChildFailedError: 
============================================================
train.py FAILED
------------------------------------------------------------
Failures:
  <NO_OTHER_FAILURES>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2025-03-02_10:27:05
  host      : gpu07.cluster
  rank      : 1 (local_rank: 1)
  exitcode  : 1 (pid: 2299)
  error_file: <N/A>
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
============================================================
""",
)

# Code: a name that MATLAB does not know.
prints(
    "name_of_matlab",
    r"""
Starting parallel pool (parpool) using the 'Processes' profile ...
Connected to parallel pool with 16 workers.
Unrecognized function or variable 'loadShards'.

Error in train_net (line 12)
    shards = loadShards(opts.root);
             ^^^^^^^^^^
""",
)

# Code: a package of R that is not installed.
prints(
    "package_of_r",
    r"""
Warning message:
package ‘Matrix’ was built under R version 4.3.3
Error in library(lme4) : there is no package called ‘lme4’
Execution halted
""",
)

# Code: a package of Julia that is not in the project.
prints(
    "package_of_julia",
    r"""
  Activating project at `~/exp/curves`
ERROR: LoadError: ArgumentError: Package Flux not found in current path.
- Run `import Pkg; Pkg.add("Flux")` to install the Flux package.
Stacktrace:
 [1] macro expansion
   @ ./loading.jl:1772 [inlined]
 [2] macro expansion
   @ ./lock.jl:267 [inlined]
 [3] require(into::Module, mod::Symbol)
   @ Base ./loading.jl:1753
in expression starting at /home/u/exp/curves/train.jl:3
""",
)

# Code: a name that Go does not know.
prints(
    "name_of_go",
    r"""
go: downloading golang.org/x/sync v0.7.0
# example.org/dedup
./main.go:27:15: undefined: readShards
./main.go:31:2: declared and not used: total
""",
)
