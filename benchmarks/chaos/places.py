"""Where the sweeps of the campaign run: on this machine, over a bucket, on a real Slurm, on a real Ray."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.bucket.buckets import Bucket
from tests.bucket.server import Proxy, Server, start_server
from tests.ray.testbed import RayCluster
from tests.slurm.testbed import Testbed

REPOSITORY = Path(__file__).parents[2]
SHIM = REPOSITORY / "tests/store/faulty.c"
SWEEP = (sys.executable, "-P", "-m", "orchestrator")


class Place(NamedTuple):
    """Where one round runs.

    Attributes:
        folder: of the round; its name is in the command line or environment of each of its processes.
        env: environment of its commands.
        words: of a launch here.
        num_launches: that run at once.
        testbed: the Slurm, if it runs there.
        cluster: the Ray cluster, if it runs there.
        bucket: the bucket, if the store is in one.
    """

    folder: Path
    env: Mapping[str, str]
    words: tuple[str, ...] = ("launcher.workers=2",)
    num_launches: int = 1
    testbed: Testbed | None = None
    cluster: RayCluster | None = None
    bucket: Bucket | None = None

    @property
    def store(self) -> Path:
        """The store as a folder; of a bucket, a copy of its small objects as they are now."""
        return self.folder / "store" if self.bucket is None else self.bucket.mirror()


class Places:
    """Makes places for rounds. What is expensive to start is started once, and ended by `close`."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="chaos.", dir="/tmp"))
        self._testbed: Testbed | None = None
        self._cluster: RayCluster | None = None
        self._s3: Server | None = None

    @contextlib.contextmanager
    def place(self, name: str) -> Iterator[Place]:
        """Yield an empty place, and remove it afterwards.

        Args:
            name: ``local``, ``two launches``, ``train``, ``slurm``, ``ray``, ``bucket``, or ``small disk``.
        """
        # A name that nothing else on this machine has: processes are found by it.
        folder = self._folder / f"round-{uuid.uuid4().hex[:12]}"
        (folder / "project").mkdir(parents=True)
        known = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "RAY_"))}
        env = {**known, "SWEEP_STORE": str(folder / "store"), "PYTHONPATH": str(REPOSITORY)}
        try:
            with getattr(self, f"_{name.replace(' ', '_')}")(folder, env) as place:
                yield place
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """End what was started."""
        if self._testbed is not None:
            self._testbed.stop()
        if self._cluster is not None:
            self._cluster.down()
        if self._s3 is not None:
            self._s3.process.kill()
            self._s3.process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextlib.contextmanager
    def _local(self, folder: Path, env: dict[str, str]) -> Iterator[Place]:
        yield Place(folder, env | {"LD_PRELOAD": str(self._shim()), "FAULTY": str(folder / "control")})

    _train = _local

    @contextlib.contextmanager
    def _two_launches(self, folder: Path, env: dict[str, str]) -> Iterator[Place]:
        yield Place(folder, env, num_launches=2)

    @contextlib.contextmanager
    def _small_disk(self, folder: Path, env: dict[str, str]) -> Iterator[Place]:
        (folder / "store").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", folder / "store"], check=True)
        try:
            yield Place(folder, env)
        finally:
            subprocess.run(["umount", "-l", folder / "store"], check=True)

    @contextlib.contextmanager
    def _slurm(self, folder: Path, env: dict[str, str]) -> Iterator[Place]:
        if self._testbed is None:
            self._testbed = Testbed.start(Path(tempfile.mkdtemp(prefix="chaos-slurm.", dir="/tmp")))
        words = ("launcher=slurm", "cluster=testbed", "cluster.memory_gib=1", "--wait")
        yield Place(folder, {**env, **self._testbed.env, **_own(env)}, words, testbed=self._testbed)
        self._testbed.clear()

    @contextlib.contextmanager
    def _ray(self, folder: Path, env: dict[str, str]) -> Iterator[Place]:
        if self._cluster is None:
            self._cluster = RayCluster(Path(tempfile.mkdtemp(prefix="chaos-ray.", dir="/tmp")))
            self._cluster.up()
        address = f"launcher.address={self._cluster.address}"
        words = ("launcher=ray", address, "launcher.settle_s=5", "--wait")
        env["RAY_AUTH_TOKEN_PATH"] = str(self._cluster.folder / "token")
        yield Place(folder, env, words, cluster=self._cluster)
        self._cluster.heal()

    @contextlib.contextmanager
    def _bucket(self, folder: Path, env: dict[str, str]) -> Iterator[Place]:
        if self._s3 is None:
            self._s3 = start_server(self._folder / "s3.log")
        name = f"chaos-{uuid.uuid4().hex[:12]}"
        self._s3.make_bucket(name)
        proxy = Proxy(self._s3.port)
        access = {
            "AWS_ENDPOINT_URL": proxy.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }
        os.environ.update(access)  # this process looks into the bucket too
        env |= access | {"SWEEP_STORE": f"s3://{name}/runs", "SWEEP_CACHE": str(folder / "cache")}
        bucket = Bucket(env["SWEEP_STORE"], proxy, folder)
        try:
            yield Place(folder, env, bucket=bucket)
        finally:
            for objects in bucket.opened:
                objects.close()
            proxy.close()

    def _shim(self) -> Path:
        """Return the library through which calls of the file system fail or wait, and clocks jump."""
        library = self._folder / "faulty.so"
        if not library.exists():
            subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, SHIM, "-ldl"], check=True)
        return library


def _own(env: Mapping[str, str]) -> dict[str, str]:
    return {key: env[key] for key in ("SWEEP_STORE", "PYTHONPATH")}
