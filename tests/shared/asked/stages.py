"""What a stage is given, and what is known of code, packages and processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from orchestrator import provenance, registry
from orchestrator.errors import StageFailure, StopSignal
from orchestrator.manifest import (
    File,
)
from orchestrator.spec import Config, plain, refuse_zero_bytes
from orchestrator.stage import Context, Inputs
from tests.recording import Answers
from tests.shared.asked.files import answer, listed


class _Kept:
    """A tracker that keeps what it is given."""

    def __init__(self, into: list[Any]) -> None:
        self.into = into

    def log(self, step: int, metrics: Any) -> None:
        self.into.append(("log", step, metrics))

    def close(self) -> None:
        self.into.append("close")


def contexts() -> Answers:
    """The services for a running stage."""
    with tempfile.TemporaryDirectory() as folder:
        calls: list[Any] = []
        stop = StopSignal()
        context = Context(
            Path(folder),
            uses=Config({"lr": 0.1}, declared="uses"),
            trackers=[_Kept(calls)],
            stop=stop,
            attempt=2,
            num_threads=3,
            checkpoint_interval_s=0.0,
            report_progress=lambda *given: calls.append(("progress", *given)),
            report_stop=lambda seconds: calls.append("stop"),
            report_adapted=lambda values: calls.append(values),
        )
        yield (
            "made",
            (
                listed(Path(folder)),
                context.attempt,
                context.num_threads,
                str(context.uses),
                context.resume,
                context.former,
                context.clock.phase,
            ),
        )
        context.log(1, num_steps=5, loss=0.5)
        context.report(2)
        context.adapt({})
        context.adapt({"lr": 1})
        context.expect_save(3.0)
        yield "called", list(calls)
        yield "due", (context.checkpoint_due(1, num_steps=5), context.stop_asked, stop.seen, calls[-1])
        with context.checkpoint(1) as place:
            (place / "x").write_text("x")
        context.checkpoint_later(2, lambda place: lambda: None)
        context.finish_checkpoint()
        yield "saved", sorted(listed(Path(folder) / "checkpoints"))
        yield "phase", answer(lambda: context.phase("sleep"))  # type: ignore[arg-type]
        with context.phase("data"):
            yield "within", context.clock.phase
        yield "work", context.work.relative_to(folder)
        yield "no work", answer(lambda: Context(Path(folder), keeps_work=False).work)
        context.retire("train", best=["a", "b/*"], none=[])
        context.retire("other", none=["c"])
        yield "retired", context.retirements
        for wrong in ("x", [1]):
            yield f"retire {wrong}", answer(lambda of=wrong: context.retire("train", best=of))  # type: ignore[arg-type]
        yield "not stopped", answer(context.stop_if_asked)
        stop.ask("deadline")
        try:
            context.stop_if_asked()
        except BaseException as error:
            yield "stopped", (type(error).__name__, str(error))
        context.close()
        yield "closed", calls[-1]


def configs() -> Answers:
    """Inputs and configs, as a stage reads them."""
    inputs = Inputs({"train": {"": Path("/p")}, "prepare": {"en": Path("/en"), "de": Path("/de")}})
    for stage in ("train", "prepare", "none"):
        yield (
            f"input {stage}",
            (
                stage in inputs,
                answer(lambda of=stage: str(inputs[of])),
                answer(lambda of=stage: inputs.each(of)),
            ),
        )
    config = Config({"model": {"dim": 8, "names": ["a"]}, "lr": None})
    for key in ("model", "lr", "none"):
        yield f"config {key}", answer(lambda of=key: config[of])
    yield (
        "inner",
        (
            answer(lambda: config.model.dim),
            answer(lambda: config.model.depth),
            config.model.names,
            "lr" in config,
            len(config),
            [*config],
        ),
    )
    yield "of uses", answer(lambda: Config({}, declared="uses").x)
    yield (
        "plain",
        (
            plain(config) is config._tree,
            config.to_dict() == config._tree,
            config.to_dict() is config._tree,
            repr(config),
        ),
    )
    for value in ("a\0b", {"x": ["ok", "\0"]}, ["fine"], {"y": {"z": "\0"}}):
        yield f"zero bytes {value!r}", answer(lambda of=value: refuse_zero_bytes(of, "", "stage fit"))
    yield "zero bytes of a key", answer(lambda: refuse_zero_bytes("\0", "config", "stage fit"))


def origins() -> Answers:
    """Where code comes from."""
    git = {"commit": "1a2b3c4d5e6f", "dirty": True, "diff": "x", "diff_sha256": "y"}
    for state in ({}, git, {**git, "dirty": False}):
        for now in ("", "9988776655", "6677889900"):
            yield f"version {bool(state)} {now}", provenance.code_version("9988776655", state, now=now)
    yield "without diff", provenance.without_diff(git)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / "mine.py").write_text("x = 1\n")
        (folder / "pack").mkdir()
        (folder / "pack/__init__.py").write_text("")
        (folder / "pack/inner.py").write_text("y = 2\n")
        for targets in (
            (),
            ("mine:main",),
            ("pack.inner:f", "mine:main", ""),
            ("nowhere:x", "orchestrator.count:main"),
        ):
            files = provenance.stage_files(targets, [str(folder)])
            yield f"files {targets}", [str(path.relative_to(folder)) for path in files]
        one, two = (provenance.code_digest(targets, [str(folder)]) for targets in ((), ("mine:main",)))
        (folder / "mine.py").write_text("x = 2\n")
        yield "digests", (one != two, len(one), two != provenance.code_digest(("mine:main",), [str(folder)]))
        yield "no checkout", provenance.git_state(str(folder / "pack"))

        def run(*words: str) -> None:
            who = ["-c", "user.name=n", "-c", "user.email=e@x"]
            subprocess.run(
                ["git", *who, *words],
                cwd=folder,
                check=True,
                capture_output=True,
                env=provenance.git_environment(),
            )

        run("init", "-q")
        run("add", ".")
        run("commit", "-q", "-m", "first")
        clean = provenance.git_state(str(folder / "pack"))
        yield "clean", {**clean, "commit": len(clean["commit"])}
        (folder / "mine.py").write_text("x = 3\n")
        dirty = provenance.git_state(str(folder))
        yield (
            "dirty",
            {
                **dirty,
                "commit": dirty["commit"] == clean["commit"],
                "diff": dirty["diff"].splitlines()[-2:],
                "diff_sha256": len(dirty["diff_sha256"]),
            },
        )
        launch = provenance.of_launch(["sweep", "launch", "a b", "password=hunter2hunter2"], str(folder), "d")
        yield "launch", ([*launch], launch["command"], [*launch["git"]], launch["code"])
        attempt = provenance.of_attempt("d", dirty)
        yield (
            "attempt",
            ([*attempt], [*attempt["git"]], attempt["code"], attempt["executable"] == sys.executable),
        )


def loaded() -> Answers:
    """Packages, modules and names that are looked up."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / "mine.py").write_text("x = 3\n")
        (folder / "pack").mkdir()
        (folder / "pack/__init__.py").write_text("")
        (folder / "pack/inner.py").write_text("y = 2\n")
        (folder / "a-1.dist-info").mkdir()
        (folder / "a-1.dist-info/METADATA").write_text(
            "Metadata-Version: 2.1\nName: A.b\nVersion: 1.5\n\nName: other\n"
        )
        (folder / "c.egg-info").write_text("Name: c\nVersion: 2\n")
        (folder / "d.egg-info").mkdir()
        (folder / "d.egg-info/PKG-INFO").write_text("Name: d\n")
        sys.path.insert(0, str(folder))
        try:
            provenance.packages.cache_clear()
            yield (
                "packages",
                [(n, v) for n, v in provenance.packages().items() if n in ("A.b", "c", "d", "other")],
            )
            yield "packages without", "A.b" in provenance.packages((str(folder),))
            (folder / "exits.py").write_text("raise SystemExit(3)\n")
            (folder / "needs.py").write_text("import no_such_module_at_all\n")
            for target in (
                "mine:x",
                "mine:y",
                "mine",
                ":x",
                "nowhere:x",
                "exits:x",
                "pack.inner:y",
                "pack.none:y",
                "orchestrator.count:maim",
            ):
                yield f"load {target}", answer(lambda of=target: registry.load(of, where="stages.fit.run"))
            try:
                registry.load("needs:x")
            except ModuleNotFoundError as error:
                yield "needs another", str(error)
        finally:
            sys.path.remove(str(folder))
            provenance.packages.cache_clear()
        table = {"one": "json:dumps", "two": "json:nothing"}
        for wanted in ("one", "two", "tow", "json:loads", "json:no", "none"):
            yield (
                f"lookup {wanted}",
                answer(lambda of=wanted: getattr(registry.lookup(table, of, kind="thing"), "__name__", "?")),
            )
        yield (
            "known",
            (
                registry.known(table),
                registry.is_known(table, "one"),
                registry.is_known(table, "x"),
                registry.install("sft"),
            ),
        )
        for missing in ("torch.nn", "nothing", "optuna"):
            made = registry.missing_extra(ModuleNotFoundError(name=missing), what="launcher=x")
            yield f"missing {missing}", str(made)
        yield "required", answer(lambda: registry.require("report", what="a report"))
        for tracker, mirrors in (
            ("store", {}),
            ("wandb", {"wandb": {"x": 1}}),
            ("stoer", {}),
            ("mine:T", {}),
            ("store", {"none": {}}),
        ):
            yield (
                f"trackers {tracker} {mirrors}",
                answer(lambda t=tracker, m=mirrors: registry.check_trackers(t, m)),
            )


def imported_again() -> Answers:
    """Modules of users' folders, which are imported again if a file has changed or another has its name."""
    with tempfile.TemporaryDirectory() as name:
        one, two = Path(name).resolve() / "one", Path(name).resolve() / "two"
        for folder, text in ((one, "x = 1"), (two, "x = 22")):
            (folder / "users_package").mkdir(parents=True)
            (folder / "users_module.py").write_text(text + "\n")
            (folder / "users_package/__init__.py").write_text("")
            (folder / "users_package/inner.py").write_text(text + "\n")
        for number, folder in enumerate((one, one, two, one)):
            if number == 1:
                (one / "users_package/inner.py").write_text("x = 333\n")
            before = list(sys.path)
            with registry.importable([str(folder), before[0]]):
                found = [registry.load(of) for of in ("users_module:x", "users_package.inner:x")]
                first = sys.path[0] == str(folder)
            yield f"import {number}", (found, first, sys.path == before)


def machines_and_processes() -> Answers:
    """What is known of file systems, times and processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mounts = folder / "mounts"
        mounts.write_text("a / ext4 rw\nb /net nfs4 rw\nc /net/my\\040disk ext4\nd /short\ne /l lustre x\n")
        for path in ("/home", "/net/x", "/net/my disk/x", "/l", "/network"):
            yield f"network {path}", provenance.is_network(Path(path), str(mounts))
        yield "no mounts", provenance.is_network(Path("/net"), str(folder / "none"))
    for at in ("1970-01-01T00:00:00Z", "x", ""):
        found = provenance.age_s(at)
        yield f"age {at}", found if not found else abs(found - time.time()) < 100
    mine = provenance.process_of(os.getpid())
    assert mine is not None
    sleeper = subprocess.Popen(["sleep", "60"])
    theirs = provenance.process_of(sleeper.pid)
    yield "processes", (provenance.is_gone(mine), theirs and provenance.is_gone(theirs))
    sleeper.kill()
    sleeper.wait()
    for change in ({}, {"boot_id": "b"}, {"namespace": "n"}, {"start": "1"}):
        yield f"gone {change}", theirs and provenance.is_gone(msgspec.structs.replace(theirs, **change))
    yield "another start", provenance.is_gone(msgspec.structs.replace(mine, start="1"))
    yield (
        "nobody",
        (provenance.process_of(2**22 + 1), provenance.start_of(2**22 + 1), provenance.process_age_s() > 0),
    )
    yield "user", re.fullmatch(r".+@.+", provenance.user()) is not None
    yield "secrets", provenance.without_secrets("token=abcdefghij0123456789ABCDEF")
    assert isinstance(StageFailure("data", "x"), Exception) and File("a", 1, "x")


ASKED: dict[str, Callable[[], Answers]] = {
    "contexts": contexts,
    "configs": configs,
    "origins": origins,
    "loaded": loaded,
    "imported_again": imported_again,
    "machines_and_processes": machines_and_processes,
}
