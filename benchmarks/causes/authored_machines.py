"""Failures by another author: what machines, networks and disks do, in the texts of the tools."""

from __future__ import annotations

from causes.authored import prints

# Memory of a GPU, on one of four ranks; the others see it leave.
prints(
    "gpu_memory_on_rank",
    r"""
{'loss': 1.8321, 'grad_norm': 2.145, 'learning_rate': 1.9e-05, 'epoch': 0.12}
  4%|▍         | 120/3000 [04:11<1:40:32,  2.09s/it]
[rank3]: Traceback (most recent call last):
[rank3]:   File "/scratch/u/sft.py", line 201, in <module>
[rank3]:     trainer.train()
[rank3]:   File "/home/u/.venv/lib/python3.11/site-packages/transformers/trainer.py", line 3698, in training_step
[rank3]:     self.accelerator.backward(loss, **kwargs)
[rank3]:   File "/home/u/.venv/lib/python3.11/site-packages/torch/_tensor.py", line 626, in backward
[rank3]:     torch.autograd.backward(
[rank3]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB. GPU 3 has a total capacity of 79.11 GiB of which 1.02 GiB is free. Including non-PyTorch memory, this process has 78.08 GiB memory in use. Of the allocated memory 74.10 GiB is allocated by PyTorch, and 2.41 GiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation for Memory Management  (https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)
W0302 10:27:05.310000 2291 torch/distributed/elastic/multiprocessing/api.py:897] Sending process 2298 closing signal SIGTERM
Traceback (most recent call last):
  File "/home/u/.venv/bin/accelerate", line 8, in <module>
    sys.exit(main())
  File "/home/u/.venv/lib/python3.11/site-packages/torch/distributed/launcher/api.py", line 269, in launch_agent
    raise ChildFailedError(
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
sft.py FAILED
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2025-03-02_10:27:05
  host      : gpu07.cluster
  rank      : 3 (local_rank: 3)
  exitcode  : 1 (pid: 2301)
  error_file: <N/A>
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
============================================================
""",
)

# Memory of a GPU: none is left for the cache. https://github.com/vllm-project/vllm-omni/issues/946
prints(
    "cache_of_vllm",
    r"""
(EngineCore_DP0 pid=6804) INFO 12-30 02:14:18 [gpu_model_runner.py:2653] Model loading took 74.2533 GiB and 40.907387 seconds
(EngineCore_DP0 pid=6804) ERROR 12-30 02:14:31 [core.py:718] EngineCore failed to start.
(EngineCore_DP0 pid=6804) ERROR 12-30 02:14:31 [core.py:718] Traceback (most recent call last):
(EngineCore_DP0 pid=6804) ERROR 12-30 02:14:31 [core.py:718]   File "/usr/local/lib/python3.12/dist-packages/vllm/v1/core/kv_cache_utils.py", line 616, in _check_enough_kv_cache_memory
(EngineCore_DP0 pid=6804) ERROR 12-30 02:14:31 [core.py:718]     raise ValueError(
(EngineCore_DP0 pid=6804) ERROR 12-30 02:14:31 [core.py:718] ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine. See https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details.
(EngineCore_DP0 pid=6804) Process EngineCore_DP0:
(EngineCore_DP0 pid=6804) Traceback (most recent call last):
(EngineCore_DP0 pid=6804)   File "/usr/lib/python3.12/multiprocessing/process.py", line 314, in _bootstrap
(EngineCore_DP0 pid=6804)     self.run()
(EngineCore_DP0 pid=6804)   File "/usr/local/lib/python3.12/dist-packages/vllm/v1/core/kv_cache_utils.py", line 616, in _check_enough_kv_cache_memory
(EngineCore_DP0 pid=6804)     raise ValueError(
(EngineCore_DP0 pid=6804) ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine. See https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details.
[rank0]:[W1230 02:14:32.512 ProcessGroupNCCL.cpp:1496] Warning: WARNING: destroy_process_group() was not called before program exit, which can leak resources.
Traceback (most recent call last):
  File "/home/u/eval.py", line 22, in <module>
    llm = LLM(model=args.model)
  File "/usr/local/lib/python3.12/dist-packages/vllm/v1/engine/utils.py", line 750, in wait_for_engine_startup
    raise RuntimeError("Engine core initialization failed. "
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
""",
)

# Memory of a GPU: none is left for the cache. https://github.com/sgl-project/sglang/issues/4330
prints(
    "cache_of_sglang",
    r"""
[2025-03-12 07:41:58 TP0] Load weight end. type=LlamaForCausalLM, dtype=torch.bfloat16, avail mem=5.13 GB, mem usage=38.61 GB.
[2025-03-12 07:41:58 TP0] Scheduler hit an exception: Traceback (most recent call last):
  File "/sgl-workspace/sglang/python/sglang/srt/managers/scheduler.py", line 1787, in run_scheduler_process
    scheduler = Scheduler(server_args, port_args, gpu_id, tp_rank, dp_rank)
  File "/sgl-workspace/sglang/python/sglang/srt/model_executor/model_runner.py", line 720, in init_memory_pool
    raise RuntimeError(
RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.

[2025-03-12 07:41:58] Received sigquit from a child process. It usually means the child failed.
Killed
""",
    137,
)

# Memory of a GPU, in boosted trees. https://github.com/dmlc/xgboost/issues/7140
prints(
    "gpu_memory_of_xgboost",
    r"""
[0]	train-logloss:0.64021	valid-logloss:0.64188
Traceback (most recent call last):
  File "boost.py", line 58, in <module>
    booster = xgb.train(params, dtrain, num_boost_round=500, evals=evals)
  File "/home/u/.venv/lib/python3.10/site-packages/xgboost/core.py", line 2051, in update
    _check_call(
  File "/home/u/.venv/lib/python3.10/site-packages/xgboost/core.py", line 282, in _check_call
    raise XGBoostError(py_str(_LIB.XGBGetLastError()))
xgboost.core.XGBoostError: [09:21:44] ../src/common/device_helpers.cuh:431: Memory allocation error on worker 0: std::bad_alloc: cudaErrorMemoryAllocation: out of memory
- Free memory: 12582912
- Requested memory: 9232383
""",
)

# Memory of a GPU, though the class is that of the host. https://github.com/NVIDIA/cudf/issues/6746
prints(
    "gpu_memory_of_rmm",
    r"""
Traceback (most recent call last):
  File "dedup.py", line 31, in <module>
    frame = cudf.read_csv(path)
  File "/opt/conda/envs/rapids/lib/python3.10/contextlib.py", line 79, in inner
    return func(*args, **kwds)
  File "/opt/conda/envs/rapids/lib/python3.10/site-packages/cudf/io/csv.py", line 72, in read_csv
    return libcudf.csv.read_csv(
  File "csv.pyx", line 419, in cudf._lib.csv.read_csv
MemoryError: std::bad_alloc: out_of_memory: CUDA error at: /opt/conda/envs/rapids/include/rmm/mr/device/cuda_memory_resource.hpp:70: cudaErrorMemoryAllocation out of memory
""",
)

# Memory of a GPU, in a buffer of XLA.
prints(
    "gpu_memory_of_xla",
    r"""
2025-02-01 11:13:02.114512: W external/xla/xla/tsl/framework/bfc_allocator.cc:501] Allocator (GPU_0_bfc) ran out of memory trying to allocate 16.00GiB (rounded to 17179869184)requested by op
2025-02-01 11:13:02.114902: W external/xla/xla/tsl/framework/bfc_allocator.cc:512] *****************************************___________________________________________________________
E0201 11:13:02.114981 2113 pjrt_stream_executor_client.cc:3045] Execution of replica 0 failed: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes. [tf-allocator-allocation-error='']
Traceback (most recent call last):
  File "/home/u/maxtext/train.py", line 640, in <module>
    app.run(main)
  File "/home/u/maxtext/train.py", line 571, in train_loop
    state, metrics = p_train_step(state, batch, rng)
jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.
--------------------
For simplicity, JAX has removed its internal frames from the traceback of the following exception. Set JAX_TRACEBACK_FILTERING=off to include these.
""",
)

# Memory of the host, and a scheduler that reports it. https://github.com/chrisknewman/tusas/issues/149
prints(
    "step_of_slurm",
    r"""
Epoch: [0][415/1736]	 Loss 0.5844 MAE 0.6568 RMSE 0.7644
Epoch: [0][447/1736]	 Loss 0.5504 MAE 0.6353 RMSE 0.7419
slurmstepd: error: Detected 1 oom_kill event in StepId=440575.0. Some of the step tasks have been OOM Killed.
srun: error: nid001277: tasks 1-3: Out Of Memory
srun: Terminating StepId=440575.0
slurmstepd: error: *** STEP 440575.0 ON nid001277 CANCELLED AT 2023-12-05T07:16:01 ***
""",
    137,
)

# Memory of the host, watched by Ray. https://github.com/real-stanford/flingbot/issues/11
prints(
    "monitor_of_ray",
    r"""
2024-01-02 10:11:12,101	INFO worker.py:1612 -- Started a local Ray instance. View the dashboard at 127.0.0.1:8265
Traceback (most recent call last):
  File "run_sim.py", line 152, in <module>
    rewards = ray.get(futures)
  File "/home/u/miniconda3/envs/sim/lib/python3.9/site-packages/ray/_private/worker.py", line 2523, in get
    raise value
ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.
Memory on the node (IP: 192.168.0.107, ID: fc2befb2867ce88e73a8a45572c43a640751ae1f2b5e15bd8315f293) where the task (actor ID: f9cc340f5aef7b479d86345001000000, name=SimEnv.__init__, pid=4331, memory used=2.22GB) was running was 59.49GB / 62.58GB (0.950744), which exceeds the memory usage threshold of 0.95. Ray killed this worker (ID: d98ac96cdd66ea8c0a2604609381c3256c8285b87822896c767f7714) because it was the most recently scheduled task; to see more information about memory usage on this node, use `ray logs raylet.out -ip 192.168.0.107`. To see the logs of the worker, use `ray logs worker-d98ac96cdd66ea8c0a2604609381c3256c8285b87822896c767f7714*out -ip 192.168.0.107. Top 10 memory users:
PID	MEM(GB)	COMMAND
4123	40.12	python run_sim.py
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/en/latest/ray-core/scheduling/ray-oom-prevention.html.
""",
)

# Memory of the host, in git.
prints(
    "memory_of_git",
    r"""
Cloning into 'wiki-dump'...
remote: Enumerating objects: 268676, done.
remote: Counting objects: 100% (286/286), done.
fatal: Out of memory, malloc failed (tried to allocate 2147483648 bytes)
fatal: fetch-pack: invalid index-pack output
""",
    128,
)

# Time: the limit of a scheduler's job.
prints(
    "limit_of_slurm",
    r"""
step 41200 | loss 2.1187 | 31.2k tok/s
step 41300 | loss 2.1204 | 31.1k tok/s
srun: Job step aborted: Waiting up to 32 seconds for job step to finish.
slurmstepd: error: *** STEP 4711.0 ON gpu07 CANCELLED AT 2025-03-02T11:12:13 DUE TO TIME LIMIT ***
srun: error: gpu07: task 0: Terminated
""",
    143,
)

# A GPU of a bad node: its fabric never started. https://github.com/huggingface/huggingface_hub/issues/4134
prints(
    "fabric_not_ready",
    r"""
GPU 0: NVIDIA H200 (UUID: GPU-8a0d2f5e-1a3b-5c6d-9e8f-001122334455)
/home/u/.venv/lib/python3.11/site-packages/torch/cuda/__init__.py:174: UserWarning: CUDA initialization: Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() that might have already set an error? Error 802: system not yet initialized (Triggered internally at /pytorch/c10/cuda/CUDAFunctions.cpp:109.)
  return torch._C._cuda_getDeviceCount() > 0
Traceback (most recent call last):
  File "/scratch/u/train.py", line 17, in <module>
    torch.cuda.set_device(local_rank)
  File "/home/u/.venv/lib/python3.11/site-packages/torch/cuda/__init__.py", line 529, in set_device
    torch._C._cuda_setDevice(device)
  File "/home/u/.venv/lib/python3.11/site-packages/torch/cuda/__init__.py", line 372, in _lazy_init
    torch._C._cuda_init()
RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() that might have already set an error? Error 802: system not yet initialized
""",
)

# Memory cells of a GPU. https://github.com/nagadit/DeepFaceLab_Linux/issues/89
prints(
    "ecc_of_stream_executor",
    r"""
2024-03-05 09:12:01.118211: I tensorflow/stream_executor/platform/default/dso_loader.cc:53] Successfully opened dynamic library libcudart.so.11.0
2024-03-05 09:12:03.445102: F tensorflow/stream_executor/lib/statusor.cc:34] Attempting to fetch value instead of handling error Internal: failed initializing StreamExecutor for CUDA device ordinal 0: Internal: failed call to cuDevicePrimaryCtxRetain: CUDA_ERROR_ECC_UNCORRECTABLE: uncorrectable ECC error encountered
Aborted (core dumped)
""",
    134,
)

# No driver on the node. https://github.com/state-spaces/mamba/issues/14
prints(
    "library_of_triton",
    r"""
Traceback (most recent call last):
  File "/home/u/mamba/train.py", line 77, in <module>
    loss = model(batch).loss
  File "/home/u/.venv/lib/python3.10/site-packages/triton/common/build.py", line 61, in _build
    cuda_lib_dirs = libcuda_dirs()
  File "/home/u/.venv/lib/python3.10/site-packages/triton/common/build.py", line 30, in libcuda_dirs
    assert any(os.path.exists(os.path.join(path, 'libcuda.so')) for path in dirs), msg
AssertionError: libcuda.so cannot found!
Please make sure GPU is set up and then run "/sbin/ldconfig" (requires sudo) to refresh the linker cache.
""",
)

# A node whose driver was updated under its kernel's module; the script looks first.
prints(
    "versions_of_nvidia_smi",
    r"""
Job 88123 on gpu-1-7, started Sun Mar  2 10:00:01 CET 2025
Failed to initialize NVML: Driver/library version mismatch
NVML library version: 550.144
""",
    18,
)

# A node whose GPUs left; the script looks first.
prints(
    "devices_of_nvidia_smi",
    "Job 88124 on gpu-1-8, started Sun Mar  2 10:00:01 CET 2025\nNo devices were found",
    6,
)
