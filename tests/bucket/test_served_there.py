"""The pages over a bucket: the same as over a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bucket.buckets import Bucket
from tests.serving.pages import Served
from tests.store import states


@pytest.mark.long
def test_the_pages_of_a_bucket_show_states_logs_and_what_is_taken_back(
    bucket: Bucket, tmp_path: Path
) -> None:
    made = states.make(tmp_path / "folder")
    objects = bucket.open()
    for path in (tmp_path / "folder").rglob("*"):
        if path.is_file():
            objects.put(path.relative_to(tmp_path / "folder").as_posix(), path.read_bytes())
    cell = made.of("done")[0]
    served = Served(tmp_path / "unused", "study", "--store", bucket.url)
    try:
        with served.client() as client:
            page = client.get("/").text
            assert page.count('<td class="box ') == len(made.kinds) and "8 of 20" in page
            there = client.get(f"/s/study/cell/{cell}").text
            assert f"score of {cell}: done" in there and "all stages are done" in there
            part = client.get("/s/study/log", params={"cell": cell, "stage": "fit"}).json()
            assert part["text"] == f"fit of {cell}: done\n"
            assert client.get("/s/study/curves.json", params={"cell": cell}).json()["curves"][0]["points"]
            bucket.proxy.is_down = True
            assert "has not answered since" in client.get("/").text
            bucket.proxy.is_down = False
            assert "has not answered since" not in client.get("/").text
        assert served.stop()[0] == 0
    finally:
        served.kill()
