"""The true causes of the programs of `benchmarks/causes/`. No sweep and no stage can read this file."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.core.failure import Cause

Truths = Mapping[Cause, tuple[str, ...]]

SEEN: Truths = {
    Cause.CONFIG: ("missing_argument", "missing_value", "bad_interpolation", "no_such_model"),
    Cause.DATA: (
        *("no_such_file", "not_utf8", "not_json", "not_parquet", "truncated_weights", "truncated_gzip"),
        *("no_zip", "bad_csv"),
    ),
    Cause.CODE: (
        *("no_name", "no_attribute", "wrong_type", "wrong_index", "no_module", "assertion", "division"),
        *("endless_recursion", "shapes", "another_dtype"),
    ),
    Cause.OOM_GPU: ("gpu_memory", "gpu_memory_of_cublas", "gpu_memory_of_jax"),
    Cause.OOM_HOST: ("host_memory", "host_memory_of_numpy", "host_memory_of_torch"),
    Cause.NAN: ("loss_is_nan", "overflow", "anomaly"),
    Cause.TIMEOUT: ("hang",),
    Cause.COMMUNICATION: ("refused", "refused_url", "refused_httpx", "no_host", "no_rendezvous", "nccl"),
    Cause.STORAGE: ("full_disk", "full_disk_of_torch", "quota", "read_only", "input_output"),
    Cause.BAD_NODE: ("ecc", "lost_gpu", "driver"),
    Cause.UNKNOWN: ("only_a_code", "killed", "crash"),
}
UNSEEN: Truths = {
    Cause.CONFIG: ("bad_yaml", "http_404"),
    Cause.DATA: ("empty_dataset", "truncated_array", "no_pickle", "no_database", "no_xml"),
    Cause.CODE: ("no_key", "too_many_values", "freed_graph", "other_weights"),
    Cause.OOM_GPU: ("gpu_memory_of_vllm", "gpu_memory_of_amd"),
    Cause.OOM_HOST: ("no_fork", "host_memory_of_arrow"),
    Cause.NAN: ("nan_logits", "nan_loss"),
    Cause.COMMUNICATION: ("http_503", "no_tls", "no_answer", "gloo"),
    Cause.STORAGE: ("stale", "full_database"),
    Cause.BAD_NODE: ("nvlink", "nvml"),
    Cause.UNKNOWN: ("another_code",),
}
FRESH: Truths = {
    Cause.CONFIG: ("bad_choice", "no_group", "wrong_setting", "bad_toml", "bad_model_config"),
    Cause.DATA: (
        *("truncated_image", "no_image", "bad_rows_of_datasets", "ragged_csv", "damaged_xz", "no_tar"),
        *("no_parquet_for_duckdb", "truncated_pickle", "truncated_torch_file"),
    ),
    Cause.CODE: (
        *("keyword", "no_such_name_in_library", "syntax", "error_in_loader", "numpy_of_gradient"),
        "device_assert",
    ),
    Cause.OOM_GPU: ("gpu_memory_of_driver", "gpu_memory_at_start", "gpu_memory_of_nccl"),
    Cause.OOM_HOST: ("host_memory_of_mmap", "host_memory_of_duckdb", "host_memory_of_cpp"),
    Cause.NAN: ("nan_sampled", "nan_gradient", "nan_matrix", "loss_scale"),
    Cause.TIMEOUT: ("stubborn_hang",),
    Cause.COMMUNICATION: (
        *("refused_requests", "cut_answer", "no_hub", "too_many_requests", "infiniband", "watchdog"),
    ),
    Cause.STORAGE: (
        *("small_disk_of_torch", "small_disk_of_arrow", "small_disk_of_safetensors", "read_only_mount"),
        *("no_mount", "slow_bucket"),
    ),
    Cause.BAD_NODE: ("other_driver", "no_driver", "gpu_off_the_bus", "unknown_cuda_error"),
    Cause.UNKNOWN: ("killed_loader", "aborted", "own_words"),
}
HELD_OUT: Truths = {
    Cause.CONFIG: ("bad_ini", "wrong_field", "no_such_override", "gated_model", "no_such_option"),
    Cause.DATA: (
        *("words_for_numbers", "no_sound", "no_matlab_file", "bad_rows_of_pandas", "truncated_arrays"),
        *("malformed_database", "no_feather"),
    ),
    Cause.CODE: ("local_function", "unbound", "two_devices", "leaf_changed", "mutable_default"),
    Cause.OOM_GPU: ("gpu_memory_of_cudnn", "gpu_memory_of_cupy", "gpu_memory_of_tensorflow"),
    Cause.OOM_HOST: ("shared_memory_of_loader", "host_memory_of_worker"),
    Cause.NAN: ("nan_matrix_of_scipy", "nan_step", "finite_asserted"),
    Cause.COMMUNICATION: (
        *("no_bucket_server", "slow_httpx", "broken_pipe", "refused_asyncio", "clients_missing"),
        "lost_daemon",
    ),
    Cause.STORAGE: (
        *("small_disk_of_numpy", "small_disk_of_database", "file_size_limit", "evicted_client"),
        "disk_errors",
    ),
    Cause.BAD_NODE: ("old_driver", "no_device_handle", "xid"),
    Cause.UNKNOWN: ("illegal_instruction", "last_words"),
}
PARTS: Mapping[str, Truths] = {"seen": SEEN, "unseen": UNSEEN, "fresh": FRESH, "held_out": HELD_OUT}
"""When they were written, to cause, to the programs that fail for it; nobody can know that of the last.

The rules of `orchestrator.core.failure` were mended by what all but `held_out` showed.
"""
CAUSES: Mapping[str, Cause] = {
    name: cause for part in PARTS.values() for cause, names in part.items() for name in names
}
PART_OF: Mapping[str, str] = {
    name: module for module, part in PARTS.items() for names in part.values() for name in names
}
