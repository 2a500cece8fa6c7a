from __future__ import annotations

import copy

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.tree import MISSING, dotted_keys, pick, place, share_unchanged, with_value, without_key

KEYS = st.text("ab", min_size=1, max_size=2)
LEAVES = st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from([0.0, 1.0, 2.0]) | KEYS
TREES = st.dictionaries(
    KEYS,
    st.recursive(
        LEAVES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


@given(TREES)
def test_every_dotted_key_picks_its_value(tree):
    for key in dotted_keys(tree):
        assert pick(tree, key) is not MISSING
    assert pick(tree, "nowhere.at.all") is MISSING


@given(TREES, TREES)
def test_a_settled_tree_is_the_tree_down_to_its_types(tree, before):
    kept = copy.deepcopy(before)
    assert repr(share_unchanged(tree, before)) == repr(tree) or share_unchanged(tree, before) == tree
    assert before == kept


@given(TREES)
def test_a_settled_equal_tree_is_the_very_same_object(tree):
    assert share_unchanged(copy.deepcopy(tree), tree) is tree


def test_one_and_true_are_not_taken_for_one_another():
    assert repr(share_unchanged({"a": [1, True, 1.0]}, {"a": [True, 1, 1]})) == "{'a': [1, True, 1.0]}"


@given(TREES, st.lists(KEYS, min_size=1, max_size=3), LEAVES)
def test_placing_shares_the_rest_and_leaves_the_old_tree_as_it_was(tree, path, value):
    kept = copy.deepcopy(tree)
    if any(not isinstance(pick(tree, ".".join(path[:n])), dict) for n in range(1, len(path))):
        return
    new = with_value(tree, path, value)
    assert pick(new, ".".join(path)) == value
    assert tree == kept
    assert all(new[key] is tree[key] for key in tree if key != path[0])


def test_place_and_without_undo_each_other():
    tree: dict[str, object] = {"a": {"b": 1}}
    place(tree, "c.d.e", 2)
    assert tree == {"a": {"b": 1}, "c": {"d": {"e": 2}}}
    assert without_key(tree, "c.d.e") == {"a": {"b": 1}, "c": {"d": {}}}
    assert without_key(tree, "a") == {"c": {"d": {"e": 2}}}
    assert without_key(tree, "a.b.c") == tree
