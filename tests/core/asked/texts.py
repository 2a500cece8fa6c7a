"""What is said of bad settings, sweep files, rows and credentials, to the last word, is as recorded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec
import numpy

from orchestrator.core import secrets, settings, sweep, tree
from orchestrator.core.failure import Cause
from orchestrator.core.sweep import (
    check_axis,
    check_name,
    is_name,
    parse,
    parse_reference,
    preload,
    stage_specs,
)
from orchestrator.stage import StageSpec
from tests.core.asked.grids import sealed_sweep
from tests.recording import Answers, answer


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    steps: int
    kind: Literal["fast", "slow"] = "fast"
    cause: Cause = Cause.CODE
    share: float = 0.5


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    inner: Inner
    maybe: Inner | None = None
    many: list[Inner] = []
    named: dict[str, Inner] = {}
    on: bool | None = None
    number: int | float | None = None
    text: str | None = None
    few: list[int] = []


TREES: list[Any] = [
    {"inner": {"steps": 1}}, {}, [], "x", 3, None, {"inner": None}, {"inner": []}, {"inner": {}}, {"inner": {"steps": "1"}},
    {"inner": {"steps": 1.5}}, {"inner": {"steps": 1, "stepz": 2}}, {"inner": {"steps": 1}, "inber": 1},
    {"inner": {"steps": 1, "kind": "fasd"}}, {"inner": {"steps": 1, "cause": "oom"}}, {"inner": {"steps": 1, "kind": 3}},
    {"inner": {"steps": 1}, "maybe": {"steps": 1, "shar": 1}}, {"inner": {"steps": 1}, "maybe": {"share": 1}}, {"inner": {"steps": 1}, "maybe": 3},
    {"inner": {"steps": 1}, "many": [{"steps": 1}, {"steps": "x"}]}, {"inner": {"steps": 1}, "many": [{"step": 1}]}, {"inner": {"steps": 1}, "many": {}},
    {"inner": {"steps": 1}, "named": {"a.b": {"steps": "x"}}}, {"inner": {"steps": 1}, "named": {"a": {"kind": "x", "steps": 1}}}, {"inner": {"steps": 1}, "named": {"a": {"stepz": 1}}},
    {"inner": {"steps": 1}, "on": "yes"}, {"inner": {"steps": 1}, "number": "x"}, {"inner": {"steps": 1}, "text": 3}, {"inner": {"steps": 1}, "text": ["x"]}, {"inner": {"steps": 1}, "few": {}},
    {"inner": {"steps": 1, "share": float("nan")}}, {"inner": {"steps": 1}, "many": [[1.0, float("inf")]]}, {"inner": {"steps": 1, "share": True}},
]  # fmt: skip


def trees() -> Answers:
    """How trees become structs, and which rows are none."""
    for value, where, key in itertools.product(TREES, ("", "f.yaml"), ("", "top")):
        yield (
            f"{value} {where} {key}",
            answer(
                lambda v=value, w=where, k=key: msgspec.to_builtins(tree.convert(v, Outer, where=w, key=k))
            ),
        )  # type: ignore[misc]
    yield (
        "no place",
        (answer(lambda: tree.convert({}, Inner)), answer(lambda: tree.refuse_non_finite(float("nan")))),
    )
    policy = {"lease_s": -1, "breaker": 3.5, "keep": "x"}
    for name, value in policy.items():
        yield (
            f"policy {name}",
            answer(lambda n=name, v=value: tree.convert({n: v}, settings.Policy, where="w", key="policy")),
        )  # type: ignore[misc]
    for value in (
        1,
        True,
        None,
        "a",
        1e-05,
        [1, "a", None],
        [[1], 2],
        [{"a": 1}],
        {
            "a": {
                1,
            }
        },
        (),
        [],
        {},
        ("x", (1,)),
    ):
        yield f"text {value}", tree.scalar_text(value)
    odd: list[Any] = [
        numpy.float32(1.5), numpy.int64(3), numpy.bool_(True), numpy.array([1]), numpy.array(2), float("nan"), -float("inf"), {"x": (1, [2.5])},
        {"x": {2: 1}}, {"x": [{"y": object}]}, "\ud800", b"x", {"\ud800": 1}, object, Cause.CODE, True, {1, 2}, numpy.float64("nan"), [[], {}],
    ]  # fmt: skip
    for value in odd:
        for row in ({"k": value}, value):
            for cause in ("code", "data"):
                yield (
                    f"row {row!a} {cause}"[:80],
                    answer(lambda r=row, c=cause: tree.checked_rows([{"ok": 1}, r], cause=c)),
                )  # type: ignore[misc]
    yield "rows", answer(lambda: tree.checked_rows(None))
    for value in ((), {}, "x", 3, [[]], [None]):
        yield f"rows {value}", answer(lambda v=value: tree.checked_rows(v))  # type: ignore[misc]
    shared = {"a": {"b": [1, {"c": 2}], "d": 1}, "e": [1, 2]}
    for new in (
        {"a": {"b": [1, {"c": 2}], "d": 1}, "e": [1, 2]}, {"a": {"b": [1, {"c": 3}], "d": 1}, "e": [1, 2]}, {"a": {"b": [1], "d": 1}, "e": (1, 2)},
        {"a": {"b": [True, {"c": 2}], "d": 1.0}}, {"e": [1, 2], "a": 3}, {"a": {"b": [1, {"c": 2}], "d": 1, "x": tree.MISSING}, "e": []},
    ):  # fmt: skip
        found = tree.share_unchanged(new, shared)
        yield (
            f"shared {new}"[:90],
            (
                found is shared,
                str(found),
                found.get("e") is shared["e"],
                isinstance(found["a"], dict) and found["a"].get("b") is shared["a"]["b"],
            ),
        )  # type: ignore[index]
        yield "  changed", tree.changed_keys(shared, new)


KEY = "sk-" + "a1B2c3D4" * 4
NAMES = (
    "api_key", "API_KEY", "apiKey", "key", "KEYS", "token", "HF_TOKEN", "TOKEN", "pad_token", "max_tokens", "password", "PWD", "OLDPWD", "passwd", "secret",
    "public_key", "sort_key", "keys", "auth.key", "store/token", "db[0].password", "credentials", "access_key_id", "wandb", "wandb_id", "run.wandb.v1", "", "author", "x.secret.y",
)  # fmt: skip
VALUES = (
    KEY, "hunter2", "", "null", "3", "${oc.env:X}", "$X", "/run/secrets/x", "the last word", "abcdefghijklmnopqrstuvwxyz", "a1b2c3d4e5f6a7b8c9d0", "f" * 40,
    "123e4567-e89b-12d3-a456-426614174000", "tok-en", "short", "abc123", "A1b2C3d4E5f6G7h8", "hf_" + "aB3" * 12, "AKIA" + "A1" * 8, "ghp_" + "a1" * 18, " x1y2z3x1y2z3x1y2z3 ",
)  # fmt: skip
LINES = (
    "export API_KEY=hunter2", "API_KEY=$KEY run", "curl -u me:hunter2 http://x", "curl --user me:hunter2 x", "postgres://me:hunter2@db/x", "postgres://me:$P@db", "http://me@x",
    "password: hunter2", "password = get_password()", "password=password", "token = tokenizer.pad", "TOKEN=abc", "token: 'a b c'", "--api-key hunter2", "--api-key=hunter2 --lr 1",
    f"x {KEY} y", "-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----", "nothing here", 'api_key: "A1b2C3d4E5f6"', "env NAME=x SECRET=y SECRET2=z", "A_TOKEN=1 B_TOKEN=zz9zz8",
    "docker run --env DB_PASSWORD=hunter2 --env X=1", "machine x login y password hunter2", "Authorization: Bearer abcdef123456", "key=3, keys=[1]",
)  # fmt: skip


def credentials() -> Answers:
    """What counts as a credential, where, and what texts become without them."""
    for name in NAMES:
        found = {}
        for value in VALUES:
            if reason := secrets.reason_of(name, value):
                found.setdefault(reason, []).append(VALUES.index(value))
        yield f"name {name}", found
        yield "  of no text", [secrets.reason_of(name, value) for value in (None, 3, ["x"], True)]
    for line in (*LINES, *VALUES):
        yield (
            f"line {line}"[:50],
            (
                secrets.line_reason(line),
                secrets.form_of(line),
                secrets.redacted(line),
                secrets.redacted(line, ["hunter2"]),
            ),
        )
        for by_name in (True, False):
            yield "  lines", list(secrets.lines_with(f"one\n{line}\nthree\n{line}", by_name=by_name))
    nested = {
        "db": {"password": "hunter2", "port": 3, "list": [{"token": KEY}, "x"]}, "cmd": ["run", "--api-key", "hunter2", "--lr", "1"], "args": ("--token", 3, "--token"),
        "env": [{"name": "API_KEY", "value": "hunter2"}, {"key": "X", "value": "y"}, {"name": "SECRET", "value": ""}], "setup": "export API_KEY=hunter2", "text": "export API_KEY=hunter2",
        KEY: 1, "plain": "the-known-value here", "seq": [KEY],
    }  # fmt: skip
    for known, shell, key in itertools.product(((), ("the-known-value",)), (False, True), ("", "top")):
        yield f"found {known} {shell} {key}", list(secrets.found_in(nested, key, known=known, shell=shell))
    yield (
        "checked before",
        list(secrets.found_in({**nested, "more": {"password": "hunter2"}}, checked=nested)),
    )
    yield "the same", list(secrets.found_in(nested, checked=nested))
    yield (
        "masked",
        (
            secrets.masked(nested),
            secrets.masked(nested, "top"),
            secrets.masked("hunter2", "password"),
            secrets.masked(3, "password"),
        ),
    )
    environment = {
        f"N{number}_{name}".upper(): value
        for number, (name, value) in enumerate(itertools.product(("password", "path", "token"), VALUES))
    }
    yield (
        "known",
        sorted(
            secrets.known_values(
                {
                    **environment,
                    "A_PASSWORD": "hunter2",
                    "B_PASSWORD": "hunter22",
                    "C_PASSWORD": "password",
                    "D_PASSWORD": "passwords",
                }
            )
        ),
    )


def registered(name: str) -> StageSpec | None:
    shipped = {
        "train": StageSpec(run="m:t", name="train", reads=("seed",), gated_by=("check", "gone")),
        "check": StageSpec(run="m:c", name="check"),
    }
    return shipped.get(name)


SWEEPS: list[Any] = [
    {"stages": ["train"]}, {"stages": ["train", "check"]}, {"stages": ["train", "train"]}, {"stages": {"train": None, "check": {}}}, {"stages": {"train": {"limit_s": 3}}},
    {"stages": {"train": {"limit_s": -1}}}, {"stages": {"train": {"limit_s": 0.5, "gated_by": []}, "check": {}}}, {"stages": {"train": {"gated_by": ["chek"]}, "check": {}}},
    {"stages": {"tain": {}}}, {"stages": {"train": {"limits": 3}}}, {"stages": {"train": {"remedies": {"oom": []}}}}, {"stages": {"x": {"run": "m:f", "name": "train"}}},
    {"stages": {"x": {"run": "m:f", "command": "a"}}}, {"stages": {"x": {"run": "m.f"}}}, {"stages": {"x": {"run": "m:f", "after": ["y"]}}}, {"stages": {"x": {"run": "m:f"}, "X": {"run": "m:g"}}},
    {"stages": {"x": {"run": "m:f", "neutral": {"seed": 1}}}}, {"stages": {"x": {"run": "m:f", "reads": ["train"], "neutral": {"train.x": 1, "traim": 1}}}}, {"stages": {"x.": {"run": "m:f"}}},
    {"stages": {"x": {"run": "m:f", "reads": "seed"}}}, {"stages": {"g": {"run": "m:g", "each": {"l": "x"}}, "x": {"run": "m:f", "gated_by": ["g"]}}},
    {"stages": {"g": {"run": "m:g", "gated_by": ["h"]}, "h": {"run": "m:h"}, "x": {"run": "m:f", "gated_by": ["g"]}}},
    {"stages": {"a": {"run": "m:a", "gated_by": ["h"]}, "b": {"run": "m:b", "after": ["a"]}, "g": {"run": "m:g", "after": ["b"]}, "h": {"run": "m:h"}, "x": {"run": "m:f", "gated_by": ["g"]}}},
    {"stages": {}}, {"app": {"module": "m"}}, {"stages": ["train"], "axes": {"a b": [1]}}, {"stages": ["train"], "axes": {"state": [1]}}, {"stages": ["train"], "axes": {"x" * 101: [1]}}, {"stages": ["train"], "axes": {"x" * 41: [1], "a=": [1]}},
    {"stages": ["train"], "columns": {"x" * 101: "a"}}, {"stages": ["train"], "columns": {"a\nb": "a"}}, {"stages": ["train"], "columns": {"": "a"}}, {"stages": ["train"], "columns": {"stage": "a", "cell": "b"}},
    *({"stages": ["train"], "axes": {"s": value}} for value in ("range(0", "range(0,3)", "shuffle(", ["glob(*)"], ["a(", "choice(1"], "x(1", {"a": 1}, ["interval" + "(" * 50], "sort(a)(")),
]  # fmt: skip


def sweeps() -> Answers:
    """Sweep files and their names."""
    for value in SWEEPS:

        def made(value: Any = value) -> object:
            file = parse(value, where="s.yaml")
            specs = stage_specs(file, registered, known=lambda: ["train", "check"], where="s.yaml")
            return {
                name: (spec.run, spec.command, spec.limit_s, spec.gated_by, spec.reads)
                for name, spec in specs.items()
            }

        yield f"{value}"[:150], answer(made)
    names = (
        "a",
        "a-b_c+1.2",
        "-a",
        "a.",
        "",
        "x" * 100,
        "x" * 101,
        "x" * 255,
        "x" * 256,
        "x" * 40,
        "x" * 41,
        "a b",
        "a=b",
        "a,b",
        "a!",
        "a\tb",
        "é",
        "cell",
        "state",
        "cause",
        "a/b",
    )
    for name in names:
        for where in ("", "s.yaml"):
            yield (
                f"name {name[:45]} {len(name)} {where}",
                (
                    answer(lambda n=name, w=where: check_name(n, what="sweep", where=w)),
                    is_name(name),
                    answer(lambda n=name, w=where: check_axis(n, where=w)),
                ),
            )  # type: ignore[misc]
    for word in (
        "s",
        "s@1",
        "s@0",
        "s@-1",
        "s@1.0",
        "s@²",
        "s@" + "9" * 9,
        "s@" + "9" * 10,
        "s@",
        "@1",
        "a@b@2",
        "dir/s.yaml",
        "dir/s.yaml@3",
        "./s.yml",
        "/abs/s",
        "s.yaml",
        "S@01",
        "https://x/s",
        "~/s",
        "a.b.yaml",
    ):
        yield f"reference {word}", answer(lambda w=word: tuple(parse_reference(w)))  # type: ignore[misc]
    sealed = sealed_sweep()
    specs = {
        "a": StageSpec(run="m:f", preload=("torch", "numpy")),
        "b": StageSpec(run="m:g", preload=("numpy", "json")),
    }
    yield "preload", preload(msgspec.structs.replace(sealed, specs=specs))
    assert sweep.gates_among(specs) == ()


def configured() -> Answers:
    """Settings, their times and their ranges."""
    base: dict[str, Any] = {"launcher": {"name": "local"}, "tracker": {}, "policy": {}, "store": {}}
    yield "usual", msgspec.to_builtins(settings.engine_from(base, where="conf"))
    for key, values in {
        "launcher.hours": ("1:30", "1:30:30", "2-00", "2-1:30", "0:59", "0:60", "1:00:60", "90", "x", 1.5, "1:", "-1", "1:30:00:00", "10-23:59:59", ""),
        "launcher.later": ({"max_hours": "1:30"}, {"hours": [1, "0:30"]}, {"hour": "1:30"}, {"the_hours": "x"}),
        "policy.lease_s": (0, 0.9, 1, 5.0, float("nan")), "policy.grace_s": (0, -0.1), "policy.checkpoint_interval_s": (0, -0.1, 3), "policy.quarantine_s": (0, -1), "policy.breaker": (0, -1, 1),
        "store.outage_s": (0, -1), "policy.retries": ({}, {"nan": 0}, {"nan": -1}, {"nam": 1}), "policy.limits_s": ({"fit": 0.1}, {"fit": -1}, {"fit": 0}),
        "policy.budget": ({"gpu_hours": 0}, {"gpu_hours": -0.1}, {"until": "2026-12-24T18:00+01:00"}, {"until": "2026-12-24T18:00"}, {"until": "x"}, {"until": None, "gpu_hours": 1e9}),
        "hardware": ({"device": "h100"}, {"device": "h10"}, {"max_gpus": 1}, {"max_gpus": 0}, {"cells_at_once": 0}, {"mfu": 1.0}, {"mfu": 0.0}, {"mfu": 1.01}, {"moldable": True}),
        "notify": ({"webhook_env": "A_B1"}, {"webhook_env": "1A"}, {"apprise_env": "http://x"}, {"stalled_minutes": 0}, {"stalled_minutes": -0.1}, {"events": ["done"]}, {"events": ["don"]}, {"command": "x", "apprise_env": "Y"}),
        "tracker": ({"name": "wandb", "options": {"project": "x"}}, {"mlflow": {"a": 1}, "trackio": {}, "tensorboard": {}}, {"plugins": {"p": {"b": 2}}}, {"name": "x"}),
    }.items():  # fmt: skip
        for value in values:
            changed = tree.with_value(base, key.split("."), value)

            def made(changed: Any = changed) -> object:
                found = settings.engine_from(changed, where="conf")
                usual = settings.engine_from(base)
                new = {
                    n: msgspec.to_builtins(getattr(found, n))
                    for n in found.__struct_fields__
                    if getattr(found, n) != getattr(usual, n)
                }
                return (
                    new,
                    found.tracker.mirrors,
                    found.notify.channels,
                    found.policy.budget.is_set,
                    found.is_external,
                )

            yield f"{key} {value}", answer(made)
    for device in ("a100", "h100"):
        yield (
            f"assumed {device}",
            msgspec.to_builtins(settings.HardwareSettings(device=device, max_gpus=2, mfu=0.3).assumed),
        )
    limit = settings.SpendingLimit(until="2026-01-01T00:00:00Z")
    yield (
        "ended",
        [limit.has_ended(1767225600.0 + by) for by in (-1, 0, 1)] + [settings.SpendingLimit().has_ended(9e9)],
    )
    yield (
        "hours of no tree",
        [
            settings.with_hours(value, key)
            for value, key in (
                (3, "a.hours"),
                ("x", "a"),
                ("1:30", "a_hours"),
                ("1:30", "a.hours"),
                ("1:30", "hours"),
            )
        ],
    )


ASKED: Mapping[str, Callable[[], Answers]] = {
    "converted": trees, "credentials": credentials, "sweeps": sweeps, "configured": configured,
}  # fmt: skip
