"""The folder of a new store, made by several launches at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from orchestrator.store.opening import make_root


def test_launches_that_make_the_folder_of_a_store_at_once_find_one_with_its_mode(tmp_path: Path) -> None:
    def make(root: Path) -> int:
        gate.wait()
        make_root(root, shared=False)
        return root.stat().st_mode & 0o777

    gate = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        for number in range(40):
            assert set(pool.map(make, [tmp_path / f"parent{number}" / "store"] * 8)) == {0o700}
            assert [path.name for path in (tmp_path / f"parent{number}").iterdir()] == ["store"]
