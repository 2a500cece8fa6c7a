"""Room in host memory for a copy of the training state: of the machine, and of a job's control groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orchestrator.sft.machine import copied, may_copy, room_bytes

MIB = 2**20


def group(folder: Path, names: tuple[str, str], limit: str, used: int, stat: str) -> None:
    folder.mkdir(parents=True)
    (folder / names[0]).write_text(limit)
    (folder / names[1]).write_text(str(used))
    (folder / "memory.stat").write_text(stat)


@pytest.mark.parametrize(
    ("line", "place", "names", "files"),
    [
        ("0::/job/step", "", ("memory.max", "memory.current"), "file"),
        (
            "7:cpu,memory:/job/step",
            "memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            "total_cache",
        ),
    ],
)
def test_the_room_is_what_the_jobs_group_leaves_with_the_page_cache_counted_as_free(
    tmp_path: Path, line: str, place: str, names: tuple[str, str], files: str
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"3:pids:/elsewhere\n{line}\n")
    groups = tmp_path / "sys/fs/cgroup" / place / "job"
    group(groups, names, str(100 * MIB), 70 * MIB, f"anon 1\n{files} {20 * MIB}\n")
    group(groups / "step", names, "max", 1, "anon 1\n")
    assert room_bytes(tmp_path) == 50 * MIB


def test_without_control_groups_the_room_is_the_machines(tmp_path: Path) -> None:
    assert room_bytes(tmp_path) > 100 * MIB
    assert may_copy(1)
    assert not may_copy(2**50)


def test_a_copy_holds_its_tensors_values_and_shares_no_memory_with_it() -> None:
    for dtype in (None, torch.float32, torch.bfloat16):
        weight = torch.ones(4)
        copy = copied(weight, dtype)
        weight += 1
        assert copy.tolist() == [1, 1, 1, 1]
        assert copy.dtype == (dtype or torch.float32)
