"""Records evolve: what a later version wrote is read; what an earlier store cannot hold is not written."""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from typing import Annotated, Any

import msgspec
import pytest

from orchestrator.core.failure import Cause
from orchestrator.core.records import End, Request, Void
from orchestrator.core.settings import RunSettings
from orchestrator.core.sweep import ComposedSweep
from orchestrator.core.tree import convert
from orchestrator.errors import UserError
from orchestrator.formats import FORMAT, SINCE_2, Settings, Stored, canonical, decode, encode, kept
from orchestrator.jobs.records import DriverStatus
from tests.store.builders import end, settings, sweep_of


class Colour(StrEnum):
    RED = "red"
    UNKNOWN = "unknown"


class Knob(Settings, frozen=True, kw_only=True):
    width: int = 1
    depth: Annotated[int, SINCE_2] = 0
    shape: Annotated[tuple[str, ...], SINCE_2] = ()


class Part(Stored, frozen=True):
    colour: Colour
    note: Annotated[str, SINCE_2] = ""


class Thing(Stored, frozen=True, kw_only=True):
    name: str
    knob: Knob | None = None
    parts: tuple[Part, ...] = ()
    by_name: dict[str, Part] = {}
    free: dict[str, Any] = {}


class OldKnob(Settings, frozen=True, kw_only=True):
    width: int = 1


class OldThing(Stored, frozen=True, kw_only=True):
    name: str
    knob: OldKnob | None = None


class NewThing(Stored, frozen=True, kw_only=True):
    extra: Annotated[dict[str, int], SINCE_2] = {}
    name: str
    knob: Knob | None = None


def plain(record: msgspec.Struct, store_format: int = FORMAT) -> Any:
    return json.loads(encode(record, store_format=store_format))


def test_information_that_a_store_of_format_1_cannot_hold_is_left_out() -> None:
    thing = Thing(name="a", parts=(Part(Colour.RED, "new"),), by_name={"x": Part(Colour.RED, "new")})
    assert plain(thing)["parts"] == [{"colour": "red", "note": "new"}]
    assert plain(thing, 1)["parts"] == [{"colour": "red"}]
    assert plain(thing, 1)["by_name"] == {"x": {"colour": "red"}}


def test_a_setting_that_a_store_of_format_1_cannot_hold_is_refused_and_its_default_is_left_out() -> None:
    assert plain(Thing(name="a", knob=Knob(width=3)), 1)["knob"] == {"width": 3}
    with pytest.raises(UserError, match="depth") as caught:
        encode(Thing(name="a", knob=Knob(depth=2)), store_format=1)
    assert caught.value.fix == "sweep upgrade"


def test_fields_from_the_future_are_ignored_and_kept() -> None:
    tree = {
        "name": "a",
        "knob": {"width": 2, "tilt": [1, 2]},
        "parts": [{"colour": "mauve", "gloss": {"z": 1, "a": 2}}],
        "by_name": {"x": {"colour": "red"}},
        "when": "tomorrow",
    }
    thing = decode(json.dumps(tree).encode(), Thing)
    assert thing.knob == Knob(width=2)
    assert thing.parts[0].colour is Colour.UNKNOWN
    assert plain(thing) == {**tree, "free": {}}
    assert plain(kept(thing, msgspec.structs.replace(thing, name="b"))) == {**tree, "free": {}, "name": "b"}


def test_what_a_reader_knows_is_still_checked() -> None:
    for tree in ({"name": 3, "later": 1}, {"later": 1}, {"name": "a", "parts": [{"later": 1}]}):
        with pytest.raises(msgspec.ValidationError):
            decode(json.dumps(tree).encode(), Thing)


def test_what_users_type_is_still_strict() -> None:
    with pytest.raises(UserError, match=r"unknown key 'knob\.heigth'"):
        convert({"name": "a", "knob": {"heigth": 1}}, Thing)


def test_content_is_digested_alike_by_versions_that_know_a_field_and_those_that_do_not() -> None:
    new = NewThing(name="a", knob=Knob(shape=("x",), depth=3), extra={"z": 1, "a": 2})
    for written in (encode(new), json.dumps(dict(reversed(json.loads(encode(new)).items()))).encode()):
        assert canonical(decode(written, OldThing)) == canonical(new)
    same = OldThing(name="a", knob=OldKnob(width=1))
    assert canonical(NewThing(name="a", knob=Knob())) == canonical(same)
    assert canonical(same) == msgspec.json.encode(same, order="deterministic")


def test_the_digest_of_a_sealed_sweep_is_what_it_was() -> None:
    sweep = sweep_of(3)
    tree = json.loads(canonical(sweep))
    assert tree["format"] == 1
    assert list(tree["specs"]["count"])[:5] == ["run", "command", "name", "version", "reads"]
    digest = hashlib.sha256(canonical(sweep)).hexdigest()
    assert digest == "3b50da95fc52639578d2adaa77132dbdcfdd8a8b199be82a36cd5d2c503e2165"
    assert hashlib.sha256(canonical(decode(encode(sweep), ComposedSweep))).hexdigest() == digest


def test_words_from_the_future_read_as_unknown() -> None:
    request = {"nonce": "n", "number": 1, "verb": "pause", "revision": 1, "cells": None, "until": "noon"}
    assert decode(json.dumps(request).encode(), Request).verb == "unknown"
    void = {"nonce": "n", "generation": 1, "kind": "recalled", "reason": "", "by": ""}
    assert decode(json.dumps(void).encode(), Void).kind == "unknown"
    lost = {"slot": None, "restart": 0, "cause": "meteor", "why": "a hole in the roof"}
    driver = decode(json.dumps({"restart": 0, "beat": 1, "lost": [lost]}).encode(), DriverStatus)
    assert driver.lost[0].cause is Cause.UNKNOWN
    late = decode(encode(end()).replace(b'"failed"', b'"paused"').replace(b'"unknown"', b'"whim"'), End)
    assert (late.outcome, late.cause) == ("unknown", Cause.UNKNOWN)


def test_a_setting_from_the_future_reads_as_its_default_and_is_kept() -> None:
    tree = json.loads(encode(settings(retention="none")))
    tree["policy"] |= {"retention": "thrifty", "patience_s": 3}
    read = decode(json.dumps(tree).encode(), RunSettings)
    assert read.policy.retention == "all"
    assert plain(read) == tree


def test_every_marked_field_has_a_default_and_every_closed_set_of_words_a_place_for_later_ones() -> None:
    """A record that could not be read for want of either would blind workers that run already."""
    from orchestrator.core import records, settings, sweep
    from orchestrator.execution import assignment
    from orchestrator.jobs import records as job_records
    from orchestrator.stage import StageSpec

    unreadable_by_intent = {"CodeFile.kind", "Retired.policy", "Select.mode"}
    structs = {
        each
        for module in (records, job_records, settings, sweep, assignment)
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, Stored)
    } | {StageSpec}
    for struct in structs:
        info: Any = msgspec.inspect.type_info(struct)
        assert isinstance(info, msgspec.inspect.StructType)
        for field in info.fields:
            kind: Any = field.type
            if isinstance(kind, msgspec.inspect.Metadata):
                assert not field.required, f"{struct.__name__}.{field.name}"
                kind = kind.type
            if isinstance(kind, msgspec.inspect.LiteralType) and field.required:
                name = f"{struct.__name__}.{field.name}"
                assert "unknown" in kind.values or name in unreadable_by_intent, name
