"""Jobs with the GPUs that were chosen for their cells, and a cell that keeps its number."""

from __future__ import annotations

from tests.cli.launches import records
from tests.launchers.own_stages import gpus_by_hours, write_moldable

GPUS = ("cluster.device=a100", "cluster.cpus_per_gpu=1", "cluster.gpus_per_node=8", "hardware.moldable=true")


def test_jobs_have_the_gpus_that_were_chosen_and_a_cell_keeps_its_number(jobs):
    name = write_moldable(jobs)
    hold = ("cluster.sbatch.hold=true", "--only", "hours=8,1")
    jobs.launch(name, *GPUS, "launcher.max_gpus=4", *hold)
    numbers = {each["tasks"][0][0].split("-")[0]: each["resources"] for each in jobs.submissions()}
    assert {cell: one["chosen_gpus"] for cell, one in numbers.items()} == {"hours8": 4, "hours1": 1}
    assert {cell: one["gpus_per_node"] for cell, one in numbers.items()} == {"hours8": 4, "hours1": 1}
    status = jobs.json("status", "jobs")["cells"]
    assert [cell.get("chosen_gpus") for cell in status] == [1, 4, None]
    assert "4 GPUs for each cell, as chosen" in jobs("why", "jobs", "hours=8")
    assert "2 waiting jobs cancelled" in jobs("cancel", "jobs")
    # On 16 GPUs the long cell would get 8, but it has its number.
    jobs.launch(name, *GPUS, "launcher.max_gpus=16")
    jobs.until_done(3)
    assert gpus_by_hours(jobs) == {8: 4, 1: 1, 3: 2}
    assert all("chosen_gpus" not in claim for claim in records(jobs.store, "claim.json"))
