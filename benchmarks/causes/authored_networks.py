"""Failures by another author: networks, storage, and what nobody can know, in the texts of the tools."""

from __future__ import annotations

from causes.authored import prints

# The network: a model's files could not be fetched, after retries.
prints(
    "hub_unreachable",
    r"""
'(MaxRetryError("HTTPSConnectionPool(host='huggingface.co', port=443): Max retries exceeded with url: /Qwen/Qwen2.5-7B/resolve/main/tokenizer_config.json (Caused by NewConnectionError('<urllib3.connection.HTTPSConnection object at 0x7fcc3aabc490>: Failed to establish a new connection: [Errno 101] Network is unreachable'))"), '(Request ID: 0a1c7d3e-2b1f-4a8e-9a53-7c1fdd7d9b10)')' thrown while requesting HEAD https://huggingface.co/Qwen/Qwen2.5-7B/resolve/main/tokenizer_config.json
Retrying in 1s [Retry 1/5].
Traceback (most recent call last):
  File "/home/u/.venv/lib/python3.11/site-packages/huggingface_hub/file_download.py", line 1484, in _get_metadata_or_catch_error
    metadata = get_hf_file_metadata(
  File "/home/u/.venv/lib/python3.11/site-packages/huggingface_hub/file_download.py", line 1010, in _hf_hub_download_to_cache_dir
    _raise_on_head_call_error(head_call_error, force_download, local_files_only)
huggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to locate the file on the Hub and we cannot find the requested files in the local cache. Please check your connection and try again or make sure your Internet connection is on.

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/scratch/u/sft.py", line 44, in <module>
    tokenizer = AutoTokenizer.from_pretrained(args.model)
  File "/home/u/.venv/lib/python3.11/site-packages/transformers/utils/hub.py", line 491, in cached_files
    raise OSError(
OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files.
Check your internet connection or see how to run the library in offline mode at 'https://huggingface.co/docs/transformers/installation#offline-mode'.
""",
)

# The network between ranks. https://github.com/NVIDIA/nccl/issues/2076
prints(
    "remote_of_nccl",
    r"""
gpu03:7991:8058 [1] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/IB ; OOB ib0:10.12.3.3<0>
gpu03:7991:8061 [1] NCCL INFO misc/socket.cc:806 -> 6
gpu03:7991:8061 [1] NCCL INFO transport/net_socket.cc:474 -> 6
[rank5]: Traceback (most recent call last):
[rank5]:   File "/home/u/ddp/train.py", line 204, in <module>
[rank5]:     main(args)
[rank5]:   File "/home/u/.venv/lib/python3.10/site-packages/torch/distributed/distributed_c10d.py", line 2501, in all_reduce
[rank5]:     work = group.allreduce([tensor], opts)
[rank5]: torch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:268, remote process exited or there was a network error, NCCL version 2.21.5
[rank5]: ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.
[rank5]: Last error:
[rank5]: socketProgressOpt: Call to recv from 10.12.3.4<33759> failed : Connection reset by peer
""",
)

# The network to a tracker. https://github.com/momentum-robotics-lab/deformgs/issues/7
prints(
    "start_of_wandb",
    r"""
wandb: Using wandb-core as the SDK backend.  Please refer to https://wandb.me/wandb-core for more information.
wandb: Network error (ConnectTimeout), entering retry loop.
wandb: ERROR Run initialization has timed out after 90.0 sec. Please try increasing the timeout with the `init_timeout` setting: `wandb.init(settings=wandb.Settings(init_timeout=120))`.
Traceback (most recent call last):
  File "train.py", line 719, in <module>
    wandb.init(project=args.wandb_project, name=args.wandb_name)
  File "/home/u/miniconda3/envs/d/lib/python3.10/site-packages/wandb/sdk/wandb_init.py", line 1013, in init
    raise CommError(
wandb.errors.errors.CommError: Run initialization has timed out after 90.0 sec. Please try increasing the timeout with the `init_timeout` setting: `wandb.init(settings=wandb.Settings(init_timeout=120))`.
""",
)

# A tracker's server that answers with 500. https://github.com/mlflow/mlflow/issues/545
prints(
    "server_of_mlflow",
    r"""
/home/u/.venv/lib/python3.10/site-packages/pydantic/_internal/_fields.py:132: UserWarning: Field "model_server_url" in _EndpointConfig has conflict with protected namespace "model_".
  warnings.warn(
Traceback (most recent call last):
  File "/home/u/.venv/lib/python3.10/site-packages/requests/adapters.py", line 507, in send
    raise RetryError(e, request=request)
requests.exceptions.RetryError: HTTPConnectionPool(host='mlflow.example.org', port=5000): Max retries exceeded with url: /api/2.0/mlflow/runs/create (Caused by ResponseError('too many 500 error responses'))

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "fit.py", line 12, in <module>
    with mlflow.start_run():
  File "/home/u/.venv/lib/python3.10/site-packages/mlflow/utils/rest_utils.py", line 222, in http_request
    raise MlflowException(f"API request to {url} failed with exception {e}")
mlflow.exceptions.MlflowException: API request to http://mlflow.example.org:5000/api/2.0/mlflow/runs/create failed with exception HTTPConnectionPool(host='mlflow.example.org', port=5000): Max retries exceeded with url: /api/2.0/mlflow/runs/create (Caused by ResponseError('too many 500 error responses'))
""",
)

# The network: no name is resolved, and pip ends as if there were no such package.
# https://github.com/bulletphysics/bullet3/issues/2385
prints(
    "index_of_pip",
    "".join(
        f"WARNING: Retrying (Retry(total={left}, connect=None, read=None, redirect=None, status=None)) after connection broken by 'NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f5c863ab{left}d8>: Failed to establish a new connection: [Errno -3] Temporary failure in name resolution')': /simple/einops/\n"
        for left in (4, 3, 2, 1, 0)
    )
    + "ERROR: Could not find a version that satisfies the requirement einops==0.8.0 (from versions: none)\n"
    "ERROR: No matching distribution found for einops==0.8.0\n",
)

# The network broke during a clone. https://github.com/GeoNode/geonode/issues/11901
prints(
    "clone_cut_off",
    r"""
Cloning into 'nemo'...
remote: Enumerating objects: 165365, done.
remote: Counting objects: 100% (903/903), done.
error: RPC failed; curl 56 GnuTLS recv error (-54): Error in the pull function.
error: 1620 bytes of body are still expected
fetch-pack: unexpected disconnect while reading sideband packet
fatal: early EOF
fatal: fetch-pack: invalid index-pack output
""",
    128,
)

# The network to a server of tickets.
prints(
    "tickets_of_kerberos",
    "kinit: Cannot contact any KDC for realm 'CLUSTER.EXAMPLE.ORG' while getting initial credentials",
)

# Storage: an image does not fit. https://github.com/NVIDIA-NeMo/Speech/issues/1029
prints(
    "layer_of_docker",
    r"""
v0.11: Pulling from nvidia/nemo
7ddbc47eeb70: Pull complete
c1bbdc448b72: Pull complete
8c3b70e39044: Extracting [=================================================> ]  1.812GB/1.834GB
failed to register layer: Error processing tar file(exit status 1): write /opt/conda/lib/python3.6/site-packages/torch/lib/libtorch.so: no space left on device
""",
)

# Storage: a checkpoint does not fit, though the class is that of memory.
# https://github.com/AaronJny/lotto/issues/2
prints(
    "checkpoint_of_tensorflow",
    r"""
Epoch 36/100
2020-07-03 09:11:02.118233: W tensorflow/core/framework/op_kernel.cc:1753] OP_REQUIRES failed at save_restore_v2_ops.cc:134 : Resource exhausted: checkpoints/model_checkpoint_35_temp_1b4ee8a5d4f64fbdaeb08d6891472655/part-00000-of-00001.data-00000-of-00001.tempstate4953384194912554988; No space left on device
Traceback (most recent call last):
  File "train.py", line 64, in <module>
    model.save_weights('{}/model_checkpoint_{}'.format(settings.CHECKPOINTS_PATH, epoch))
  File "/home/u/.venv/lib/python3.7/site-packages/tensorflow/python/framework/ops.py", line 6653, in raise_from_not_ok_status
    six.raise_from(core._status_to_exception(e.code, message), None)
  File "<string>", line 3, in raise_from
tensorflow.python.framework.errors_impl.ResourceExhaustedError: checkpoints/model_checkpoint_35_temp_1b4ee8a5d4f64fbdaeb08d6891472655/part-00000-of-00001.data-00000-of-00001.tempstate4953384194912554988; No space left on device [Op:SaveV2]
""",
)

# Storage: a bucket is full. https://github.com/minio/minio/issues/17596
prints(
    "bucket_of_minio",
    r"""
uploading checkpoint-2000 to s3://runs/ ...
Traceback (most recent call last):
  File "/scratch/u/push.py", line 29, in <module>
    client.upload_file(str(path), "runs", key)
  File "/home/u/.venv/lib/python3.11/site-packages/boto3/s3/transfer.py", line 378, in upload_file
    raise S3UploadFailedError(
boto3.exceptions.S3UploadFailedError: Failed to upload checkpoint-2000/model.safetensors to runs/checkpoint-2000/model.safetensors: An error occurred (XMinioStorageFull) when calling the CreateMultipartUpload operation: Storage backend has reached its minimum free drive threshold. Please delete a few objects to proceed.
""",
)

# Storage: a data set does not fit. https://github.com/huggingface/datasets/issues/2972
prints(
    "space_for_datasets",
    r"""
Using the latest cached version of the module from /home/u/.cache/huggingface/modules/datasets_modules/datasets/natural_questions
Traceback (most recent call last):
  File "/scratch/u/prepare.py", line 12, in <module>
    dataset = load_dataset("natural_questions")
  File "/home/u/.venv/lib/python3.10/site-packages/datasets/builder.py", line 797, in download_and_prepare
    raise OSError(
OSError: Not enough disk space. Needed: 134.92 GiB (download: 41.97 GiB, generated: 92.95 GiB, post-processed: Unknown size)
""",
)

# Nobody knows who killed the rank. https://github.com/apple/ml-recurrent-drafter/issues/5
prints(
    "killed_rank",
    r"""
Loading checkpoint shards:  50%|#####     | 2/4 [00:31<00:31, 15.7s/it]
E0909 09:36:56.120000 2606 torch/distributed/elastic/multiprocessing/api.py:869] failed (exitcode: -9) local_rank: 7 (pid: 3309) of binary: /usr/bin/python
Traceback (most recent call last):
  File "/usr/local/bin/torchrun", line 8, in <module>
    sys.exit(main())
  File "/usr/local/lib/python3.10/dist-packages/torch/distributed/launcher/api.py", line 264, in launch_agent
    raise ChildFailedError(
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
=====================================================
recurrent_drafting/cmd/train.py FAILED
-----------------------------------------------------
Failures:
  <NO_OTHER_FAILURES>
-----------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2024-09-09_09:36:56
  host      : f5735d9ffd4f
  rank      : 7 (local_rank: 7)
  exitcode  : -9 (pid: 3309)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 3309
=====================================================
""",
)

# Nobody knows: reports name drivers, memory, shapes and versions. https://github.com/pytorch/pytorch/issues/32881
prints(
    "execution_of_cudnn",
    r"""
Traceback (most recent call last):
  File "main.py", line 211, in <module>
    train(args, model, train_loader, optimizer, epoch)
  File "/home/u/.venv/lib/python3.10/site-packages/torch/nn/modules/conv.py", line 456, in _conv_forward
    return F.conv2d(input, weight, bias, self.stride,
RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED
""",
)

# Nobody knows: it may be the GPU, the driver or a kernel. https://github.com/ROCm/legacy-rocm-build/issues/5259
prints(
    "hang_of_rocm",
    r"""
Loss/train_mean_inlier_rep_error: 4.7540 (4.7279) | Grad/pos_proj: 1.0838 (1.5358) | Grad/point: 65.9949 (74.0430)
HW Exception by GPU node-4 (Agent handle: 0x1ebc04e0) reason :GPU Hang
Aborted (core dumped)
""",
    134,
)

# Nobody knows who killed the process.
prints(
    "killed_under_mpirun",
    r"""
Step 1200 loss 3.014
--------------------------------------------------------------------------
mpirun noticed that process rank 3 with PID 0 on node gpu07 exited on signal 9 (Killed).
--------------------------------------------------------------------------
""",
    137,
)
