"""`sweep work` over a bucket: what Kubernetes and SkyPilot are given, and workers on bare machines."""

from __future__ import annotations

import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.bucket.buckets import Bucket, BucketSweep

COUNT = """
config: {seed: 0, count: {num_steps: 4, checkpoint_every: 2, step_s: 0, fail: null}}
axes: {seed: "range(0,3)"}
stages: [count]
"""
IMAGE = ("--image", "registry.example.org/sweep:1", "--number", "3", "--gpus", "2")


@pytest.fixture
def launched(bucket: Bucket) -> BucketSweep:
    """A launch without workers, over a bucket."""
    folder = bucket.folder / "project"
    folder.mkdir()
    (folder / "Jobs_A.yaml").write_text(COUNT)
    sweep = BucketSweep(folder, bucket)
    sweep("launch", "Jobs_A.yaml", "launcher=external", "policy.grace_s=45")
    return sweep


def test_templates_are_valid_name_no_credential_and_follow_the_exit_codes(
    launched: BucketSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launched.env is not None
    launched.env["AWS_SECRET_ACCESS_KEY"] = secret = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
    assert "needs an image" in launched("work", "Jobs_A", "--as", "k8s", code=2)
    assert "needs a local queue" in launched("work", "Jobs_A", "--as", "kueue", "--image", "x", code=2)
    texts = {
        "k8s": launched("work", "Jobs_A", "--as", "k8s", *IMAGE, "--secret", "mine"),
        "kueue": launched("work", "Jobs_A", "--as", "kueue", *IMAGE, "--queue", "gpus"),
        "skypilot": launched("work", "Jobs_A", "--as", "skypilot", "--gpus", "2", "--number", "3"),
    }
    assert not any(secret in text for text in texts.values())
    jobs: dict[str, Any] = {kind: yaml.safe_load(text) for kind, text in texts.items()}
    for kind in ("k8s", "kueue"):
        for version in ("1.29", "1.33"):
            kubernetes_validate.validate(jobs[kind], version, strict=True)
        spec, pod = jobs[kind]["spec"], jobs[kind]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", jobs[kind]["metadata"]["name"])
        assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
        assert container["command"][:5] == ["sweep", "work", "Jobs_A@1", "--store", launched.bucket.url]
        assert container["resources"] == {"limits": {"nvidia.com/gpu": 2}}
        assert pod["terminationGracePeriodSeconds"] > 45 and pod["restartPolicy"] == "Never"
        actions = {
            code: rule["action"]
            for rule in spec["podFailurePolicy"]["rules"]
            for code in rule.get("onExitCodes", {}).get("values", ())
        }
        assert actions == {2: "FailJob", 76: "FailIndex", 77: "FailIndex", 75: "Ignore"}
        variables = {each["name"]: each["value"] for each in container["env"]}
        assert variables["AWS_ENDPOINT_URL"] == launched.bucket.proxy.url
        assert not any("KEY" in name for name in variables)
    secrets = [jobs[k]["spec"]["template"]["spec"]["containers"][0]["envFrom"] for k in ("k8s", "kueue")]
    assert secrets[0] == [{"secretRef": {"name": "mine", "optional": False}}]
    assert secrets[1] == [{"secretRef": {"name": "polysweep-store", "optional": True}}]
    assert "suspend" not in jobs["k8s"]["spec"] and jobs["kueue"]["spec"]["suspend"] is True
    assert jobs["kueue"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    task = jobs["skypilot"]
    assert task["resources"]["accelerators"] == "A100:2"
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert task["secrets"] == {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}
    assert task["run"].startswith("sweep work Jobs_A@1 --store s3://")


@pytest.mark.long
def test_a_worker_with_an_empty_cache_fetches_the_code_and_leaves_its_log_in_the_bucket(
    launched: BucketSweep,
) -> None:
    bare = BucketSweep(launched.bucket.folder, launched.bucket, node="bare")
    assert "3 done; exit code 0" in bare("work", "Jobs_A", "--workers", "2")
    assert len(list(launched.bucket.folder.glob("bare/**/polysweep/orchestrator/cli/work.py"))) == 1
    logs = list(launched.store.glob("sweeps/Jobs_A/logs/work-*/*.log"))
    assert sum(path.read_text().count("succeeded") for path in logs) == 3
