"""Shards on disk as training reads them: mapped into memory, and the same whatever wrote them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from orchestrator.sft.shards import (
    SCHEMA,
    SHARD,
    Example,
    Rows,
    open_shard,
    read_shard,
    table_of,
    write_shard,
)

ROWS = [Example("train", str(number), 2, list(range(number, 2 * number))) for number in range(4, 12)]
LAST = [Example("validation", "last", 1, [7, 8, 9])]


def test_rows_of_a_shard_are_read_in_place_and_equal_those_of_the_examples(tmp_path: Path) -> None:
    write_shard([*ROWS, *LAST], tmp_path)
    mapped = open_shard(tmp_path, "train")
    rows, copied = Rows(mapped, pad_token_id=0), Rows(ROWS, pad_token_id=0)
    for ours, theirs in zip(rows.batch([3, 0, 5])[:3], copied.batch([3, 0, 5])[:3], strict=True):
        assert torch.equal(ours, theirs)
    assert rows.num_targets.tolist() == copied.num_targets.tolist()
    # The address of the tokens is that of the table's buffer: nothing was copied.
    assert rows.tokens(0).ctypes.data == mapped["input_ids"].chunks[0].values.buffers()[1].address
    assert pa.total_allocated_bytes() < 1 << 20
    assert [row._replace(input_ids=list(row.input_ids)) for row in read_shard(tmp_path)] == [*ROWS, *LAST]


@pytest.mark.parametrize("batches", [1, 3])
def test_rows_in_several_record_batches_and_in_any_order_of_splits_are_all_found(
    tmp_path: Path, batches: int
) -> None:
    mixed = [ROWS[0], *LAST, *ROWS[1:]]
    with pa.OSFile(str(tmp_path / SHARD), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for part in np.array_split(np.arange(len(mixed)), batches):
            writer.write_table(table_of([mixed[row] for row in part]))
    rows = Rows(open_shard(tmp_path, "train"), pad_token_id=0)
    assert [rows.tokens(row).tolist() for row in range(len(rows))] == [row.input_ids for row in ROWS]
    validation = Rows(open_shard(tmp_path, "validation"), pad_token_id=0)
    assert [validation.tokens(row).tolist() for row in range(len(validation))] == [[7, 8, 9]]
    both = Rows(
        pa.concat_tables([open_shard(tmp_path, "validation"), open_shard(tmp_path, "train")]), pad_token_id=0
    )
    assert both.batch([0, 8]).input_ids[0, :4].tolist() == [7, 8, 9, 0]


def test_a_split_without_rows_is_empty(tmp_path: Path) -> None:
    write_shard(LAST, tmp_path)
    assert len(Rows(open_shard(tmp_path, "train"), pad_token_id=0)) == 0
    write_shard([], tmp_path)
    assert len(open_shard(tmp_path)) == 0
