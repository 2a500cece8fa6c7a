"""The local launcher: a pool of worker slots on this machine, one for each share of its GPUs or CPUs.

There is no scheduler below it, so it does that work itself: it assigns GPUs to slots and replaces workers
that were killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping
from functools import cached_property
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.core.tree import convert
from orchestrator.costs import DEVICES, Hardware
from orchestrator.entry import fix_import_paths, short_paths
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.execution.assignment import Assignment, GpuShare, log_tail
from orchestrator.execution.main import HELD_SIGNALS, in_fork_server
from orchestrator.formats import encode
from orchestrator.jobs.nodes import NodeReports, named
from orchestrator.jobs.records import NO_MEMORY, REFUSED, RELEASED, TOO_SHORT, UNABLE
from orchestrator.launchers.base import Launch, LaunchGpus
from orchestrator.processes import end_adopted
from orchestrator.store.ledger import open_ledger

MAX_RESTARTS = 20
"""Most restarts of one slot's worker in a launch. Failure budgets end most loops much earlier."""

# the first makes the server adopt orphans; the second spares each worker the imports
_PRELOADED = ("orchestrator.execution.fork_server", "orchestrator.execution.main")
_STARTED: set[int] = set()
"""Process ids of the workers of this process's fork server. Its other children are orphans that it
adopted."""

_LEAVING = (0, TOO_SHORT, RELEASED, NO_MEMORY)
"""Exit codes after which a worker is not replaced. Of several, the last in this list decides for the job."""


class LocalSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`conf/launcher/local.yaml`.

    Attributes:
        workers: number of worker slots; None for as many as the GPUs, or without GPUs the CPUs, suffice for.
        cpus_per_worker: CPU threads of each child.
        gpus_per_worker: GPUs that each worker sees, on machines that have any; 0 to use none.
        snapshot: run a snapshot of the code in the store, not the checkout, which may be edited meanwhile.
    """

    name: str = "local"
    workers: int | None = None
    cpus_per_worker: int = 1
    gpus_per_worker: int = 1
    snapshot: bool = False


class LocalLauncher:
    """A launcher that forks its workers from one server, which has imported the heavy libraries for all.

    Args:
        settings: the config's `launcher`.
        num_cells: most workers that are started, unless `launcher.workers` requests more.
        cluster: ignored; only launchers with a cluster profile use it.

    Raises:
        UserError: settings that this machine cannot meet.
    """

    def __init__(
        self, settings: Mapping[str, Any], num_cells: int, cluster: Mapping[str, Any] | None = None
    ) -> None:
        self._settings = convert(dict(settings), LocalSettings, key="launcher")
        gpus = visible_gpus()
        self._gpus = gpus if self._settings.gpus_per_worker else ()
        self._slots = slots(self._settings, gpus, available_cpus(), num_cells)
        self._launch: Launch
        self._context = multiprocessing.get_context("forkserver")
        self._processes: dict[int, ForkServerProcess] = {}
        self._restarts: dict[int, int] = {}
        self._stopping, self._refused = False, ""
        self._token = secrets.token_hex(8)
        self.released = 0

    @property
    def takes_snapshot(self) -> bool:
        """Whether workers run a snapshot of the code."""
        return self._settings.snapshot

    def hardware(self) -> Hardware | None:
        """Return what a worker has: its GPUs, or else this host's memory, which all workers share."""
        num_each = self._settings.gpus_per_worker
        return gpu_hardware(self._gpus, num_each) if self._gpus else host_hardware()

    def _num_gpus(self, *, is_shared: bool) -> float:
        """Return the GPUs that a worker holds; workers that share all of them hold equal parts."""
        if is_shared:
            return len(self._gpus) / len(self._slots)
        return self._settings.gpus_per_worker if self._gpus else 0

    @cached_property
    def _device(self) -> str:
        """The kind of the GPUs, "" without any, or if it cannot be determined."""
        hardware = self.hardware() if self._gpus else None
        return hardware.device if hardware is not None else ""

    def gpus(self) -> LaunchGpus | None:
        """Return this machine's GPUs."""
        return LaunchGpus(len(self._gpus), len(self._gpus)) if self._gpus else None

    def start(self, launch: Launch) -> None:
        """Start the fork server and a worker in every slot.

        Raises:
            InfrastructureError: this machine is left out, because stages failed on it at once.
        """
        self._launch = launch
        here, limit_s = platform.node(), launch.settings.policy.quarantine_s
        nodes = NodeReports(open_ledger(launch.store), limit_s)
        # In a job each worker refuses by itself: it counts as one on a bad node.
        if launch.job is None and (found := nodes.left_out().get(("local", here))) is not None:
            raise InfrastructureError(f"no worker is started: {named(here, found)}")
        fix_import_paths()
        self._context.set_forkserver_preload([*_PRELOADED, *launch.preload])
        for slot in range(len(self._slots)):
            if not self._stopping:
                self._start_worker(slot)
        if self._stopping:  # a stop arrived while a worker was being started, which it missed
            self.stop()

    def _start_worker(self, slot: int) -> None:
        """Fork a worker for a slot."""
        launch, shared = self._launch, None
        if launch.gpus is not None:
            shared = GpuShare(
                ids=self._gpus,
                token=self._token,
                stages=launch.gpus.stages,
                chosen=launch.gpus.chosen,
                default=self._settings.gpus_per_worker,
            )
        order = assignment_of(
            launch,
            slot=slot,
            num_slots=len(self._slots),
            env=self._slots[slot] if shared is None else {},
            gpus=shared,
            num_threads=self._settings.cpus_per_worker,
            num_gpus=self._num_gpus(is_shared=shared is not None),
            device=self._device,
        )
        process = self._forked(encode(order), str(self._log(slot)))
        self._processes[slot] = process
        # kept beyond the life of this launcher: the fork server serves all launches of this process
        _STARTED.add(process.pid or 0)

    def _forked(self, order: bytes, log: str) -> ForkServerProcess:
        """Return the process of a worker, from a new fork server where the one that was asked has died.

        Raises:
            InfrastructureError: they die again and again.
        """
        for _ in range(MAX_RESTARTS):
            try:
                _ensure_fork_server()
                process = self._context.Process(target=in_fork_server, args=(order, log))
                process.start()
            except (EOFError, ConnectionError) as error:
                died = error
                time.sleep(0.25)  # a killed one counts as running until the kernel has ended it
            else:
                return process
        raise InfrastructureError(f"the process that starts workers died {MAX_RESTARTS} times") from died

    def _log(self, slot: int) -> Path:
        return Path(self._launch.log_folder) / f"request-{self._launch.request}-worker-{slot}.log"

    def _last_line(self, slot: int) -> str:
        """Return the last line of a worker's log, without its time and prefix."""
        lines = log_tail(self._log(slot)).splitlines()
        return lines[-1].partition(f"worker {slot}: ")[2] if lines else "its log is empty"

    def poll(self) -> int:
        """Count live workers, and replace killed ones.

        The successor of a killed worker resumes its stage at once.
        """
        alive = 0
        for slot, process in list(self._processes.items()):
            code = process.exitcode
            if code is None:
                alive += 1
                continue
            del self._processes[slot]  # its end counts once
            if code:  # end what it left behind, before its successor starts
                _end_left_behind()
            if code in _LEAVING:
                # one worker out of memory must decide for the job, however well the others ended
                self.released = max(self.released, code, key=_LEAVING.index)
            elif code in UNABLE:
                self._refused = f"{self._last_line(slot)} (worker {slot} in {self._launch.log_folder})"
            elif code == REFUSED:
                why = f"{self._last_line(slot)}; `sweep nodes` lists the machines that are left out"
                self._refused = f"worker {slot} refused to work, see {self._launch.log_folder}: {why}"
            elif not self._stopping:
                self._restarts[slot] = self._restarts.get(slot, 0) + 1
                if self._restarts[slot] <= MAX_RESTARTS:
                    self._start_worker(slot)
                    alive += 1
                else:
                    self._refused = f"worker {slot} died again and again, see {self._launch.log_folder}"
        return alive

    def stop(self, *, kill: bool = False) -> None:
        """Send a signal to every worker; children of killed workers end by themselves."""
        self._stopping = True
        for process in self._processes.values():
            if process.exitcode is None and process.pid is not None:
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.kill(process.pid, signal.SIGKILL if kill else signal.SIGTERM)

    def refusal(self) -> str:
        """Return which worker refused to work, "" if none did."""
        return self._refused


def _end_left_behind() -> None:
    """End the processes that killed workers left behind; the fork server has adopted them."""
    server = getattr(forkserver, "_forkserver")._forkserver_pid  # noqa: B009 - it has no public name
    if server is not None:
        end_adopted(server, _STARTED)


def _ensure_fork_server() -> None:
    """Start the fork server if needed, with stop signals blocked.

    A terminal sends Ctrl-C to all processes, and a scheduler may signal all processes of a job. If that
    killed the fork server, its workers would look dead. So the server ignores SIGINT and blocks the others
    from its first moment on, which it inherits from this process:

        this process   SIGINT ignored, SIGTERM/SIGUSR1/SIGUSR2 blocked    until the server runs
        fork server    inherits both, for good
        worker         inherits both; installs its handlers, then unblocks

    A signal that reaches a worker before its handlers are installed stays pending until then. It is neither
    lost nor fatal.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    try:
        with short_paths():
            util.get_temp_dir()  # the server's socket will lie here, as long as this process lives
        resource_tracker.ensure_running()  # start the tracker first: its start unblocks SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)


def slots(
    settings: LocalSettings, gpus: tuple[str, ...], num_cpus: int, num_cells: int
) -> list[dict[str, str]]:
    """Return the environment of each worker slot.

    With four GPUs and two for each worker, the slots are::

        [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]

    Args:
        settings: from the config.
        gpus: ids of the visible GPUs.
        num_cpus: number of CPUs that this process may use.
        num_cells: upper bound on the number of slots when `workers` is not set.

    Raises:
        UserError: there are fewer GPUs than the workers need, or a number is too small.
    """
    for name in ("cpus_per_worker", *(("workers",) if settings.workers is not None else ())):
        if getattr(settings, name) < 1:
            raise UserError(f"launcher.{name} is {getattr(settings, name)}", allowed="at least 1")
    per_worker = settings.gpus_per_worker
    if per_worker < 0:
        raise UserError(f"launcher.gpus_per_worker is {per_worker}", allowed="at least 0")
    if not gpus or per_worker == 0:
        number = settings.workers or max(1, min(num_cells, num_cpus // settings.cpus_per_worker))
        # otherwise libraries in the workers would find the GPUs and use them
        hidden: dict[str, str] = {"CUDA_VISIBLE_DEVICES": ""} if gpus else {}
        return [dict(hidden) for _ in range(number)]
    most = len(gpus) // per_worker
    number = settings.workers or max(1, min(num_cells, most))
    if number > most:
        raise UserError(
            f"{number} workers with {per_worker} GPUs each do not fit on {len(gpus)} GPUs",
            where=f"CUDA_VISIBLE_DEVICES={','.join(gpus)}",
            fix=f"launcher.workers={most}" if most else f"launcher.gpus_per_worker={len(gpus)}",
        )
    return [
        {"CUDA_VISIBLE_DEVICES": ",".join(gpus[slot * per_worker : (slot + 1) * per_worker])}
        for slot in range(number)
    ]


def visible_gpus(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the ids of the NVIDIA GPUs that this process may use, without importing torch."""
    environment = os.environ if environment is None else environment
    visible: Any = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(part for part in (word.strip() for word in visible.split(",")) if part and part != "-1")
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, errors="replace", timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(str(i) for i, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU "))


_CUDA_SHARE = 0.98
"""Share of the memory reported by `nvidia-smi` that CUDA then has; the driver keeps 0.6 to 1.9 %."""


def gpu_hardware(gpus: tuple[str, ...], per_worker: int) -> Hardware | None:
    """Return what `nvidia-smi` reports of some GPUs; the smallest one counts. None if it reports nothing."""
    command = ["nvidia-smi", f"--id={','.join(gpus)}", "--query-gpu=memory.total,name"]
    try:
        listed = subprocess.run(
            [*command, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            check=True,
        )
        rows = [line.split(",", 1) for line in listed.stdout.splitlines() if line.strip()]
        memory_mib, name = min((float(memory), name.strip()) for memory, name in rows)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    known = [device for key, device in DEVICES.items() if key in name.lower()]
    return Hardware(
        device=name,
        memory_gib=_CUDA_SHARE * memory_mib / 1024,
        peak_tflops=known[0].peak_tflops if known else 100.0,
        max_gpus=per_worker,
    )


def assignment_of(launch: Launch, *, slot: int, num_slots: int, **more: Any) -> Assignment:
    """Return the work of one worker of a launch.

    Args:
        launch: the launch.
        slot: index of the worker.
        num_slots: number of workers.
        **more: fields of `Assignment` that the launcher chooses.
    """
    return Assignment(
        store=launch.store,
        sweep=launch.sweep,
        revision=launch.revision,
        cells=launch.cells,
        settings=launch.settings,
        slot=slot,
        num_slots=num_slots,
        import_paths=launch.import_paths,
        code_digest=launch.code_digest,
        job=launch.job,
        code=launch.code,
        named=launch.named,
        request=launch.request,
        **more,
    )


def host_hardware() -> Hardware | None:
    """Return what this host has. The peak is a guess: a launch only checks whether cells fit."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not available on this system
        return None
    return Hardware(device="cpu", memory_gib=memory / 2**30, peak_tflops=0.05 * available_cpus(), max_gpus=1)


def available_cpus() -> int:
    """Return how many CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        # a container or a job may be pinned to fewer CPUs than the machine has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
