from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator.compose.interpolations import depends, in_order, references
from orchestrator.core.tree import MISSING

RAW = {
    "seed": 3,
    "lr": 1e-05,
    "flag": True,
    "nothing": None,
    "name": "x",
    "empty": "",
    "list": [1, 2],
    "a": {"b": {"c": 1.0, "d": "text"}, "e": "y"},
}
TEXTS = st.lists(
    st.sampled_from(
        [
            *(
                "${seed}",
                "${lr}",
                "${flag}",
                "${nothing}",
                "${name}",
                "${empty}",
                "${list}",
                "${a}",
                "${a.b.c}",
            ),
            *(
                "${.seed}",
                "${..seed}",
                "${.b.d}",
                "${a[b].d}",
                "${list.0}",
                "${list[1]}",
                "${ seed }",
                "${a.${name}}",
            ),
            *(
                "${oc.select:seed}",
                "$",
                "{",
                "}",
                "\\",
                "\\${seed}",
                "'",
                '"',
                " ",
                "x",
                "-",
                "/",
                ":",
                "é",
                "3",
                "null",
            ),
            *("${nowhere}", "true", "[1]", "#", "@", "!", "?%;()", "\n", "=", ",", "???"),
        ]
    ),
    min_size=1,
    max_size=4,
).map("".join)


@settings(max_examples=400, deadline=None)
@given(text=TEXTS, nested=st.booleans())
def test_what_is_filled_in_here_is_what_omegaconf_makes_of_it(text, nested):
    tree = {**RAW, "a": {**RAW["a"], "here": text}} if nested else {**RAW, "here": text}
    try:
        OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except OmegaConfBaseException:
        return  # the first cell of a composition is resolved as a whole, so this is found there
    for reference in references(tree):
        value = reference.filled(RAW)
        if value is not MISSING:
            config = OmegaConf.create(tree)
            expected = OmegaConf.to_container(config, resolve=True)
            expected = expected["a"]["here"] if nested else expected["here"]
            assert repr(value) == repr(expected)


@given(text=TEXTS, key=st.sampled_from(["seed", "lr", "flag", "name", "empty", "a.b.c", "a.e", "a.b.d"]))
def test_a_reference_that_cannot_depend_on_a_key_does_not_change_with_it(text, key):
    tree = {**RAW, "here": text}
    try:
        OmegaConf.create(tree)
    except OmegaConfBaseException:
        return  # no text of a config: refused when it is read
    values = []
    for changed in ("one", "e"):
        config = OmegaConf.create(tree)
        OmegaConf.update(config, key, changed)
        try:
            values.append(repr(config.here))
        except OmegaConfBaseException as error:
            values.append(str(error))
    found = list(references(tree))
    if not any(depends(reference, [tuple(key.split("."))]) for reference in found):
        assert values[0] == values[1]


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("${a.b}", (("a", "b"),)),
        ("${a[b].c}", (("a", "b", "c"),)),
        ("x-${a}-${b.c}", (("a",), ("b", "c"))),
        ("${a.${b}}", (("b",), ("a",))),
        ("${a.b${c}}", (("c",), ("a",))),
        ("${.b}", (("s", "b"),)),
        ("${..b}", (("b",),)),
        ("${oc.env:X}${a}", (("a",),)),
        ("${oc.select:x}", None),
        ("${${a}}", None),
        ("${a${b}}", None),
    ],
)
def test_what_an_interpolation_reads(text, reads):
    (reference,) = references({"s": {"here": text}})
    assert reference.reads == reads


def test_references_come_after_those_that_they_read():
    raw = {"c": "${b}!", "b": "${a}?", "a": "${x}", "loop": "${pool}", "pool": "${loop}", "x": 1}
    assert [reference.path for reference in in_order(references(raw))] == [("a",), ("b",), ("c",)]
