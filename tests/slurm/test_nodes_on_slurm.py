"""A node on which stages fail at once is left out of later submissions, until it is freed."""

from __future__ import annotations

STAGE = """
import os
from orchestrator.errors import StageFailure

def train(config, inputs, context):
    if os.environ["SLURMD_NODENAME"] == "node1":
        raise StageFailure("bad_node", "torch sees 0 of 8 GPUs")
    return [{"node": os.environ["SLURMD_NODENAME"]}]
"""
TWO_NODES = ("launcher.bad_node_hours=0", "cluster.sbatch={exclude: 'node[3-4]'}")


def test_of_two_nodes_the_one_that_fails_is_left_out_of_later_submissions(jobs):
    name = jobs.write(cells=2, stage="train")
    jobs.write_stages(STAGE)
    jobs.launch(name, *TWO_NODES)
    jobs.until(lambda: not jobs.cluster.job_states())
    (node,) = jobs.json("nodes")
    assert (node["node"], node["cluster"], node["left_out"]) == ("node1", "testbed", True)
    assert [(each["kind"], each["cause"]) for each in node["reports"]] == [("failed", "bad_node")] * 2
    jobs("reconcile", "jobs")
    assert jobs.submissions()[-1]["exclude"] == ["node1"]
    script = (jobs.store / "sweeps/jobs/logs/jobs-000002/job.sh").read_text()
    assert "node1" in next(line for line in script.splitlines() if "--exclude" in line)
    jobs.until_done(2)
    assert {row["node"] for product in jobs.products() for row in product["rows"]} == {"node2"}
    # The last node: Slurm refuses the job, and the error says how to free it.
    alone = jobs.write("alone", cells=3, stage="train")  # two of them are done
    said = jobs("launch", alone, *jobs_words("exclude: 'node[2-4]'"), code=2)
    assert "left out are node1: sweep nodes" in said
    assert "node1 is used again" in jobs("nodes", "--clear", "node1")
    jobs("reconcile", "alone", code=None)
    assert jobs.submissions("alone")[-1]["exclude"] == []


def test_a_node_with_another_version_of_a_package_claims_nothing_and_is_left_out(jobs):
    wrong = jobs.folder.parent / "wrong"
    (wrong / "numpy-99.dist-info").mkdir(parents=True)
    (wrong / "numpy-99.dist-info/METADATA").write_text("Name: numpy\nVersion: 99\n")
    name = jobs.write(cells=2, stage="train")
    jobs.write_stages(STAGE.replace('== "node1"', '== "nowhere"'))
    setup = f"[ $SLURMD_NODENAME != node1 ] || export PYTHONPATH={wrong}"
    jobs.launch(name, *TWO_NODES, f"cluster.setup=['{setup}']")
    jobs.until(lambda: not jobs.cluster.job_states())
    (node,) = jobs.json("nodes")
    assert (node["node"], node["left_out"]) == ("node1", True)
    (report, *_) = node["reports"]
    assert (
        report["kind"] == "check" and "other packages than at the launch: numpy 99 (and not" in report["why"]
    )
    jobs("reconcile", "jobs")
    jobs.until_done(2)
    rows = [row for product in jobs.products() for row in product["rows"]]
    assert {row["node"] for row in rows} == {"node2"}
    assert {product["attempt"] for product in jobs.products()} == {1}, "it cost no attempt"


def jobs_words(sbatch: str) -> tuple[str, ...]:
    """What launches on the test bed with options of sbatch."""
    return ("launcher=slurm", "cluster=testbed", "cluster.memory_gib=1", f"cluster.sbatch={{{sbatch}}}")
