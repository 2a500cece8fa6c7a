"""The code that launches find, and the snapshots that they keep of it; steps that are kept for audits."""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from orchestrator.core.records import CodeFile
from orchestrator.errors import UserError
from orchestrator.execution.audit import AuditedContext, machine, segments_of
from orchestrator.spec import StageSpec
from orchestrator.store import code, layout, project
from orchestrator.store.checkout import Checkout
from orchestrator.store.ledger import open_ledger
from tests.recording import Answers, answer
from tests.shared.asked.files import listed
from tests.store.builders import sweep_of


def _git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def _project(root: Path) -> None:
    for name, text in {
        "main.py": "import helper\nfrom pack import inner\nimport json\n",
        "helper.py": "import deep.er\n",
        "pack/__init__.py": "",
        "pack/inner.py": "from . import other\n",
        "pack/other.py": "x = 1\n",
        "deep/er.py": "",
        "data.csv": "1",
        "ignored/big.bin": "x",
        ".gitignore": "ignored\n*.log\n",
        "train.log": "x",
        "run.sh": "#!/bin/sh\n",
        ".hidden/x.py": "",
        "node_modules/x.py": "",
        "venv/pyvenv.cfg": "",
        "venv/x.py": "",
        "README.md": "",
        "sweep.yaml": "stages: {}\n",
        "conf/a.yaml": "a: 1\n",
        "__pycache__/m.pyc": "",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "run.sh").chmod(0o755)
    (root / "link.py").symlink_to("main.py")
    (root / "dangling").symlink_to("nowhere")
    (root / "folder").symlink_to("pack")


def projects() -> Answers:
    """The files of a project, and what of them is code."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve() / "p"
        _project(root)
        outside = root.parent / "outside.py"
        outside.write_text("import helper\n")
        (root / "out.py").symlink_to(outside)
        for kind in ("plain", "git"):
            if kind == "git":
                _git(root, "init", "-q")
                _git(root, "add", ".")
                _git(root, "commit", "-q", "-m", "x")
            yield (
                f"{kind} root",
                [
                    str(project.root_of(root / each).relative_to(root.parent))
                    for each in ("", "pack", "ignored")
                ],
            )
            paths = project.paths_in(root, [root / "deep"])
            yield f"{kind} paths", sorted(str(path.relative_to(root)) for path in paths)
            for file in project.files_of(root, [*paths, root / "gone"]):
                yield (
                    f"{kind} file",
                    (file.path, file.kind, file.size, oct(file.mode & 0o100), file.link, file.source.name),
                )
            ignored = project.Ignored(root)
            some = [
                str(root / each)
                for each in ("main.py", "train.log", "ignored/big.bin", "folder/x.log", "folder/inner.py")
            ]
            yield f"{kind} not ignored", [each.removeprefix(str(root)) for each in ignored.without(some)]
        yield (
            "imported",
            sorted(each.removeprefix(str(root)) for each in project.imported_files(str(root / "main.py"))),
        )
        yield "everything", [file.path for file in project.everything_in(root / "pack")]
        yield "git says no", project.git(root, "check-ignore", "-q", "main.py")
        yield (
            "git fails",
            str(answer(lambda: project.git(root, "no-such-command"))).replace(str(root), "ROOT"),
        )
        yield "no git here", project.git(root.parent, "status")
        yield "installed", [project.is_installed(Path(each)) for each in ("/a/site-packages/b", "/a/b")]
        command = "python main.py --config conf/a.yaml --train-file data.csv --out result.csv | tee run.log"
        command += "; ./run.sh --predictions data.csv"
        for specs in (
            {"a": StageSpec(command=command)},
            {"a": StageSpec(run="pack.inner:f")},
            {"a": StageSpec(run="orchestrator.count:main")},
        ):
            checkout = Checkout(specs, [str(root)], left_out=[root / "deep"])
            first = checkout.digest()
            yield f"named {next(iter(specs.values())).run}", checkout.named
            yield "files", sorted(each for each in checkout._files() if not each.startswith("package/"))
            changes: list[object] = []
            for file in ("pack/other.py", "data.csv", "conf/a.yaml", "README.md", "sweep.yaml", "train.log"):
                before = (root / file).read_text()
                (root / file).write_text(before + "# more\n")
                changes.append(
                    (file, checkout.digest() == first, checkout.is_code_of(first), checkout.changed())
                )
                (root / file).write_text(before)
            for change in changes:
                yield f"changed {next(iter(specs.values())).run}", change


def _without_package(planned: code.SnapshotPlan) -> code.SnapshotPlan:
    kept = [item for item in planned.items if not item.file.path.startswith(layout.CODE_PACKAGE)]
    digest = code.digest_of(item.file for item in kept)
    return code.SnapshotPlan(msgspec.structs.replace(planned.code, digest=digest), tuple(kept))


def snapshots() -> Answers:
    """Snapshots of the code, whole and damaged."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        (root / "p").mkdir()
        _project(root / "p")
        objects = open_ledger(str(root / "store"), create=True).objects
        planned = code.plan(
            objects,
            [str(root / "p/pack"), str(root / "p")],
            targets=["main:f"],
            exclude=[root / "p/deep"],
            version="v",
        )
        again = code.plan(
            objects, [str(root / "p/pack"), str(root / "p")], targets=["main:f"], exclude=[root / "p/deep"]
        )
        yield (
            "planned",
            (
                planned.code.import_paths,
                planned.code.version,
                planned.code.git,
                planned.code.digest == again.code.digest,
                planned.num_bytes > 1e6,
            ),
        )
        kept = [item for item in planned.items if not item.file.path.startswith(layout.CODE_PACKAGE)]
        for item in kept:
            yield "item", (item.file.path, item.file.kind, item.file.size, item.data[:20])
        yield (
            "no folder",
            str(answer(lambda: code.plan(objects, [str(root / "none")]))).replace(str(root), "ROOT"),
        )
        some = _without_package(planned)
        digest = some.code.digest
        yield "not stored", code.damage(objects, digest)
        yield (
            "stored",
            (
                code.store(objects, some) == some.code,
                code.damage(objects, digest),
                code.store(objects, some) == some.code,
            ),
        )
        folder = code.folder(objects, digest)
        text = lambda value: str(value).replace(str(root), "ROOT").replace(digest, "DIGEST")  # noqa: E731
        yield (
            "places",
            (
                text(folder),
                text(code.package_path(objects, digest)),
                text(code.import_paths(objects, some.code)),
            ),
        )
        yield (
            "python path",
            (code.python_path(Path("/a"), {"PYTHONPATH": "/b"}), code.python_path(Path("/a"), {})),
        )
        yield (
            "version",
            (code.version_of(some.code, sweep_of(1), ()), len(code.version_of(again.code, sweep_of(1), ()))),
        )
        yield (
            "files",
            [
                (each, oct((folder / each).lstat().st_mode & 0o777))
                for each in listed(folder)
                if " -> " not in each and (folder / each).is_file()
            ],
        )


def damaged_snapshots() -> Answers:
    """What is wrong with a snapshot, which the next launch mends."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        (root / "p").mkdir()
        _project(root / "p")
        objects = open_ledger(str(root / "store"), create=True).objects
        planned = code.plan(objects, [str(root / "p")])
        kept = [item for item in planned.items if not item.file.path.startswith(layout.CODE_PACKAGE)]
        some = _without_package(planned)
        digest = some.code.digest
        code.store(objects, some)
        folder = code.folder(objects, digest)
        first = next(item.file for item in kept if item.file.kind == "file")
        link = next(item.file for item in kept if item.file.kind == "link")
        (folder / first.path).chmod(0o600)
        for change in ("content", "missing", "folder", "link", "stray", "link gone"):
            path = folder / (link.path if change == "link gone" else first.path)
            if change == "stray":
                (path.parent / "stray.py").write_text("")
            elif change == "content":
                path.write_text("changed")
            else:
                path.unlink()
            if change == "folder":
                path.mkdir()
            if change == "link":
                path.symlink_to("x")
            if change == "link gone":
                path.write_text("")
            yield (
                f"damaged: {change}",
                (
                    code.damage(objects, digest),
                    code.store(objects, some) == some.code,
                    code.damage(objects, digest),
                ),
            )
        record = root / "store" / layout.code_record(digest)
        for content in ("{", record.read_text().replace(first.sha256, "0" * 64)):
            record.chmod(0o600)
            record.write_text(content)
            yield f"record {content[:5]}", code.damage(objects, digest)


def large_snapshots() -> Answers:
    """Code that is too large, and what of it is the largest."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        (root / "p").mkdir()
        _project(root / "p")
        objects = open_ledger(str(root / "store"), create=True).objects
        code.MAX_BYTES, most = 10, code.MAX_BYTES
        try:
            code.plan(objects, [str(root / "p")])
        except UserError as error:
            yield "too large", re.sub(r"\d[\d.,]* (MB|files)", r"N \1", str(error)).replace(str(root), "ROOT")
        finally:
            code.MAX_BYTES = most
        weights = {"a/b/c": 90, "a/b/d": 5, "e": 30, "f/g": 10, "f/h": 10}
        yield "largest", [(str(path), weight) for path, weight in code._largest(weights)]
        yield "record", code.record_of([CodeFile(path="a", kind="file", size=1, sha256="s")])


def audits() -> Answers:
    """Segments of steps that are kept for audits."""
    for number, steps in itertools.product((1, 3, 50), (1, 2, 8, 40, 1000)):
        yield f"segments {number} {steps}", segments_of("digest", number, steps)
    yield "another stage", segments_of("other", 3, 40)
    yield "machine", [*machine()]
    with tempfile.TemporaryDirectory() as folder:
        context = AuditedContext(
            Path(folder),
            digest="digest",
            number=1,
            checkpoint_interval_s=1e6,
            keep=2,
            attempt=3,
            num_threads=2,
        )
        for step in range(1, 41):
            if context.checkpoint_due(step, num_steps=40):
                if step % 2:
                    with context.checkpoint(step) as place:
                        (place / "sub").mkdir()
                        (place / "sub/state").write_text(str(step))
                else:

                    def begin(place: Path, at: int = step) -> Callable[[], None]:
                        return lambda: (place / "state").write_text(str(at)) and None

                    context.checkpoint_later(step, begin)
                    context.finish_checkpoint()
        yield "kept", [each for each in listed(Path(folder)) if each.startswith(("audit", "segments"))]
        yield "checkpoints", (listed(Path(folder) / "checkpoints"), context.attempt)
        facts = next(path for path in Path(folder).rglob("segments*"))
        yield "facts", re.sub(r'"(cpu|device|system)": "[^"]*"', r'"\1": "IT"', facts.read_text())


ASKED: dict[str, Callable[[], Answers]] = {
    "projects": projects,
    "snapshots": snapshots,
    "damaged_snapshots": damaged_snapshots,
    "large_snapshots": large_snapshots,
    "audits": audits,
}
