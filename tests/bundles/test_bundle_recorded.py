"""What a bundle of a study holds, and what is found in forged ones, is as recorded, see ../recording.py."""

from __future__ import annotations

import json
import random
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.bundles.description import CRATE
from orchestrator.bundles.verifying import VerifyOptions, verify_bundle
from orchestrator.errors import SweepError
from tests.bundles import forging
from tests.bundles.conftest import Honest
from tests.bundles.forgeries import forgeries
from tests.recording import compare_text
from tests.seen import as_lines, moment, plain, shown
from tests.store.study import Study
from tests.store.study_records import NOW_S

pytestmark = pytest.mark.xdist_group("bundles")  # they share what is expensive to set up
RECORDED = Path(__file__).parent / "recorded"


def described(path: Path) -> Iterator[str]:
    """The names of a bundle's files, its claims, and what its crate says of all but single files."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    yield from files
    yield from as_lines(json.loads(files["claims.json"]))
    parts = json.loads(files[CRATE])["@graph"]
    for part in parts:
        part.pop("hasPart", None)
        kinds = part["@type"] if isinstance(part["@type"], list) else [part["@type"]]
        if "File" not in kinds or part["@id"].endswith((".md", "/1.json", "000001.json", "rows.csv")):
            yield from as_lines(part, depth=0)
    manifest = json.loads(files["manifest.json"])
    yield from as_lines({name: value for name, value in manifest.items() if name not in ("files", "root")})


VARYING = {r"Python 3\\.[0-9.]+": "Python", r"polysweep [0-9][^ \"]*": "polysweep V"}


def test_a_bundle_of_a_study_is_as_recorded(tmp_path: Path) -> None:
    root, out = tmp_path / "store", tmp_path / "study.zip"
    with moment(NOW_S):
        Study(root)
        found = shown(root, "bundle", "study", "--out", out)
        found += shown(root, "bundle", "study", "--partial", "--out", tmp_path / "study.tar")
        found += shown(root, "bundle", "study", "--partial", "--weights", "--out", out)
        found += shown(root, "bundle", "study", "--partial", "--out", out, "--json")
        found += shown(None, "verify", out)
        found += "\n".join(described(out))
    found = re.sub(r"\"?root\"?:? \"?[0-9a-f]{12}\"?", "root R", found)
    found = re.sub(r"num_bytes: [0-9]+|[0-9.]+ MB", "SIZE", found)
    compare_text(RECORDED / "study.txt", plain(found, {str(tmp_path): "HERE"}), VARYING)


def found_in(path: Path, **options: Any) -> str:
    """What a reader finds in a bundle, a line each."""
    try:
        found = verify_bundle(path, VerifyOptions(**options))
    except SweepError as error:
        return f"{type(error).__name__}: {error}"
    return "; ".join([*found.faults[:4], *found.unchecked, found.signature])


def test_what_is_found_in_forged_bundles_is_as_recorded(honest: Honest, tmp_path: Path) -> None:
    files, path = forging.read(honest.bundle), tmp_path / "forged.zip"
    lines = [f"honest: {found_in(honest.bundle)}; {found_in(honest.bundle, key=honest.public)}"]
    for forgery in [each for each in forgeries() if each.caught == "digests"][::2]:
        path.write_bytes(forgery.forge(files, random.Random(forgery.name)))
        lines.append(f"{forgery.name}: {found_in(path, key=honest.public)}")
    words = {r"\b[0-9a-f]{16,}\b": "DIGEST", r"[0-9,]+ bytes instead of [0-9,]+": "N bytes instead of M"}
    compare_text(RECORDED / "forged.txt", "\n".join(lines), words)
