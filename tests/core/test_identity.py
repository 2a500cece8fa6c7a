from __future__ import annotations

import json
import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.identity import canonical, cell_ids, digest_of, stage_digest
from orchestrator.core.sweep import Input
from orchestrator.errors import UserError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/~"), max_size=8)
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(codec="ascii", exclude_characters="/~"), max_size=4), inner, max_size=4
        )
    ),
    max_leaves=12,
)


def shuffled(tree):
    if isinstance(tree, dict):
        return {key: shuffled(value) for key, value in reversed(tree.items())}
    return [shuffled(item) for item in tree] if isinstance(tree, list) else tree


@given(TREES)
def test_the_order_of_keys_does_not_matter(tree):
    assert canonical(tree) == canonical(shuffled(tree))


@given(TREES)
def test_canonical_json_reads_back_as_the_same_values(tree):
    assert canonical(json.loads(canonical(tree))) == canonical(tree)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/~f")))
def test_text_counts_in_its_composed_form(text):
    forms = {canonical({"x": unicodedata.normalize(form, text)}) for form in ("NFC", "NFD")}
    assert len(forms) == 1


def test_the_text_is_compact_sorted_and_unescaped():
    assert canonical({"b": [1, 1.0, 1e-5, True, None], "a": "é"}) == '{"a":"é","b":[1,1.0,1e-05,true,null]}'


def test_whole_numbers_and_floats_differ():
    assert digest_of({"x": 1}) != digest_of({"x": 1.0})
    assert digest_of({"x": 1}) != digest_of({"x": True})
    assert digest_of({"x": "1"}) != digest_of({"x": 1})


NO_IDENTITY = [
    *(math.nan, math.inf, -math.inf, object(), {1, 2}, b"x", {1: 2, "a": 3}),
    *("\ud800", "caf\udcff", {"\udcff": 1}),  # half a character, and bytes of a command line that are no text
    {"\u00e9": 1, "e\u0301": 2},  # two spellings of one key
]


@pytest.mark.parametrize("value", NO_IDENTITY)
def test_what_has_no_stable_identity_is_refused_with_its_key(value):
    with pytest.raises(UserError) as error:
        canonical({"a": {"b": [0, value]}}, where="stage 'fit'")
    assert "a.b[1]" in error.value.what
    assert error.value.where == "stage 'fit'"


@pytest.mark.parametrize("path", ["/data/train", "/data", "~/data", "~/", "file:///data", "/a/b c/d"])
def test_absolute_paths_are_refused_with_their_key(path):
    with pytest.raises(UserError) as error:
        canonical({"data": {"dir": path}})
    assert "data.dir" in error.value.what
    assert "uses" in error.value.fix


@pytest.mark.parametrize(
    "text", ["a/b", "/", "/ or", "1/2", "~", "s3://bucket/x", "org/name", 'say "/x"', "/a b"]
)
def test_text_with_slashes_that_is_no_path_is_fine(text):
    assert json.loads(canonical({"x": text})) == {"x": text}


def test_a_stage_digest_changes_with_each_of_its_parts_and_nothing_else():
    base = ("m:f", 1, {"lr": 0.1}, [Input("prep", "en", "d1")])
    variants = [
        base,
        ("m:g", 1, {"lr": 0.1}, [Input("prep", "en", "d1")]),
        ("m:f", 2, {"lr": 0.1}, [Input("prep", "en", "d1")]),
        ("m:f", 1, {"lr": 0.2}, [Input("prep", "en", "d1")]),
        ("m:f", 1, {"lr": 0.1}, [Input("prep", "en", "d2")]),
        ("m:f", 1, {"lr": 0.1}, [Input("prep", "es", "d1")]),
        ("m:f", 1, {"lr": 0.1}, []),
    ]
    assert len({stage_digest(*variant) for variant in variants}) == len(variants)
    assert stage_digest(*base) == stage_digest(*base)
    assert len(stage_digest(*base)) == 64


def test_digests_stay_what_they_are_across_versions_of_this_code():
    digest = stage_digest(
        "polysweep:train", 1, {"seed": 0, "languages": ["en"]}, [Input("prepare", "en", "0" * 64)]
    )
    assert digest == "9c85044fa50b8a7757816df95480a3cdd8869cb6971fd12f2976cb2c3e300fda"


def test_ids_are_the_name_and_eight_digits():
    (cell,) = cell_ids(["tiny.math.en+sw.seed0"], [["d"]])
    assert cell == f"tiny.math.en+sw.seed0-{digest_of(['d'])[:8]}"


def test_ids_hold_only_what_a_path_can_hold():
    (cell,) = cell_ids(["a b/c:ü.[1]"], [["d"]])
    assert cell.rpartition("-")[0] == "a-b-c-ü.-1-"
    assert cell_ids(["", "../.."], [["d"], ["e"]])[1].startswith("-") is False
    assert len(cell_ids(["x" * 999], [["d"]])[0]) < 200


@pytest.mark.parametrize("label", ["日本", "বাংলা", "తెలుగు", "Kiswahili_1"])
def test_ids_keep_the_words_of_any_script(label):
    assert cell_ids([label], [["d"]])[0].startswith(f"{label}-")
    assert cell_ids([unicodedata.normalize("NFD", label)], [["d"]]) == cell_ids([label], [["d"]])


@given(st.text(st.characters(exclude_categories=[])), st.text("日é", min_size=200, max_size=300))
def test_ids_fit_into_a_file_name_whatever_a_label_holds(label, long):
    for name in (label, long, label + long):
        (cell,) = cell_ids([name], [["d"]])
        assert len(cell.encode()) < 200
        assert not any(c in "/\\" or c.isspace() or unicodedata.category(c)[0] in "CZ" for c in cell)
        assert cell[0] not in ".-"


def test_ids_that_would_collide_grow_until_they_differ():
    # found by search: the digests of both chains begin with the same eight digits
    seen: dict[str, str] = {}
    for number in range(200_000):
        start = digest_of([str(number)])[:8]
        if start in seen:
            break
        seen[start] = str(number)
    else:
        pytest.skip("no collision in reach")
    ids = cell_ids(["x", "x", "y"], [[seen[start]], [str(number)], ["other"]])
    assert len(set(ids)) == 3
    assert len(ids[0]) == len(ids[1]) == len("x-") + 16
    assert len(ids[2]) == len("y-") + 8
