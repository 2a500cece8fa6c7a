from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.selector import Selector, Subject, any_of, refuse_impossible, select
from orchestrator.core.tree import scalar_text
from orchestrator.errors import UserError


def subject(cell="tiny-a.math.en+sw-3f9c2a71", **axes):
    axes = {"model": "tiny-a", "task": "math", "mixture": "en+sw", "seed": "0"} | axes
    config = {
        "languages": ["en", "sw"],
        "empty": [],
        "nothing": None,
        "flag": True,
        "trainer": {"lr": 1e-5, "steps": 10},
        "name": "x",
    }
    return Subject(axes, {"size": 3, "name": "column"}, config, cell, "failed", "oom_gpu")


@pytest.mark.parametrize(
    "text",
    [
        "model=tiny-a",
        "model=tiny-a task=math state=failed",
        "model=tiny-*",
        "model=tiny-[ab]",
        "model=tiny-?",
        "model=other,tiny-a",
        "model!=other",
        "model!=other,another",
        "mixture=en+sw",
        "mixture=en,en+sw",
        "seed=0",
        "seed=0.0",
        "seed!=1",
        "size=3",
        "name=column",
        "cause=oom_gpu",
        "state=failed,lost",
        "languages=en",
        "languages=en+sw",
        "languages=*+sw",
        "languages!=de",
        "empty=",
        "languages!=",
        "nothing=null",
        "trainer!=3",
        "flag=true",
        "trainer.lr=0.00001",
        "trainer.lr=1e-5",
        "trainer.lr=1e-05",
        "absent!=x",
        "tiny-a.math.en+sw-3f9c2a71",
        "tiny-a.math",
        "*sw-3f9c2a71",
        "other,tiny-a.math",
        "cell=tiny-a.*",
        "  model=tiny-a   task=math ",
    ],
)
def test_a_selector_that_matches(text):
    assert Selector.parse(text).matches(subject())


@pytest.mark.parametrize(
    "text",
    [
        "model=tiny",
        "model=tiny-a task=api_calling",
        "model=TINY-A",
        "model!=tiny-a",
        "model!=tiny-*",
        "mixture=en",
        "seed=00x",
        "languages=sw+en",
        "languages=",
        "languages!=en",
        "nothing=",
        "nothing=0",
        "nothing!=null",
        "flag=1",
        "flag=True",
        "trainer.lr=1e-4",
        "absent=x",
        "absent=null",
        "math",
        "cell=tiny-a",
        "state=done",
    ],
)
def test_a_selector_that_does_not_match(text):
    assert not Selector.parse(text).matches(subject())


@pytest.mark.parametrize("text", ["", "  ", "=x", "!=x", "a!b", "a,b=c", "a,,b", ",", "!"])
def test_malformed_selectors_are_refused(text):
    with pytest.raises(UserError):
        Selector.parse(text)


SUBJECTS = [
    subject("tiny-a.math-11111111"),
    subject("tiny-a.api-22222222", task="api_calling"),
    subject("tiny-b.math-33333333", model="tiny-b"),
]


@pytest.mark.parametrize(
    ("text", "what", "allowed"),
    [
        ("modle=tiny-a", "unknown key 'modle'", "model"),
        ("model=tiny-c", "unknown model 'tiny-c'", "tiny-a"),
        ("model!=tiny-c", "unknown model 'tiny-c'", "tiny-a"),
        ("model=tiny-a,tiny-c", "unknown model 'tiny-c'", "tiny-a"),
        ("state=faild", "unknown state 'faild'", "failed"),
        ("cause=oom", "unknown cause 'oom'", "oom_gpu"),
        ("trainer.stesp=1", "unknown key 'trainer.stesp'", "trainer.steps"),
        ("trainer=1", "'trainer' is a section", "trainer.lr"),
        ("tiny-c", "no cell 'tiny-c'", "tiny-a"),
        ("tiny-a", "beginning of 2 cells", "tiny-a.math"),
        ("zzz*", "no cell 'zzz*'", ""),
    ],
)
def test_a_selector_that_cannot_be_meant_is_refused_with_the_nearest(text, what, allowed):
    with pytest.raises(UserError) as error:
        Selector.parse(text).check(SUBJECTS)
    assert what in error.value.what
    assert allowed in error.value.allowed


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("model=tiny-c*", []),
        ("model=tiny-a", [0, 1]),
        ("tiny-b", [2]),
        ("tiny-a*", [0, 1]),
        ("trainer.steps=99", []),
        ("state=done", []),
        ("seed=0.0", [0, 1, 2]),
    ],
)
def test_a_selector_that_can_be_meant_passes_even_if_it_matches_nothing(text, found):
    selector = Selector.parse(text)
    selector.check(SUBJECTS)
    assert [index for index, subject in enumerate(SUBJECTS) if selector.matches(subject)] == found


def test_labels_that_were_narrowed_away_may_still_be_named():
    selector = Selector.parse("model=tiny-c")
    with pytest.raises(UserError, match="tiny-c"):
        selector.check(SUBJECTS)
    selector.check(SUBJECTS, labels={"model": {"tiny-c"}})
    assert not any(map(selector.matches, SUBJECTS))


def test_states_cannot_be_asked_for_before_there_are_any():
    planned = [one._replace(state=None, cause=None) for one in SUBJECTS]
    with pytest.raises(UserError, match="not known before a launch"):
        Selector.parse("state=failed").check(planned)


@pytest.mark.parametrize("text", ["model=tiny-a model=tiny-b", "seed=1 model=z*", "cell=x state=failed"])
def test_words_that_no_cell_matches_together_are_refused_whatever_the_states(text):
    with pytest.raises(UserError, match="no cell matches"):
        refuse_impossible([text], SUBJECTS)
    refuse_impossible(["model=tiny-a state=running", "state=lost", "model=tiny-a,tiny-b"], SUBJECTS)


def test_several_selectors_are_alternatives():
    pairs = list(enumerate(SUBJECTS))
    assert select(["model=tiny-b", "task=api_calling"], pairs) == [1, 2]
    assert select([], pairs) == [0, 1, 2]
    assert select(["tiny-b.m"], pairs) == [2]
    assert any_of([], SUBJECTS[0])
    with pytest.raises(UserError):
        select(["model=tiny-b", "model=nope"], pairs)


def test_keys_say_what_a_selector_asks_for():
    assert Selector.parse("model=a seed!=1").keys == {"model", "seed"}
    assert Selector.parse("abc seed=1").keys == {"cell", "seed"}


@pytest.mark.parametrize(
    ("text", "does_match"),
    [
        ('model="x y, z"', True),
        ("model='x y, z'", True),
        ("'model=x y, z' task=math", True),
        ('model=x" y, "z', True),
        ('model=other,"x y, z"', True),
        ('model="x y*"', True),
        ('model!="x y, z"', False),
        ('model="x y",z', False),
        ("empty=''", True),
    ],
)
def test_quotes_keep_spaces_and_commas(text, does_match):
    assert Selector.parse(text).matches(subject(model="x y, z")) == does_match


@pytest.mark.parametrize("text", ["model=x y", "model=x y task=math", "task=math model=z,w model!=x y"])
def test_a_value_with_a_space_and_without_quotes_is_refused_with_the_spelling_that_works(text):
    subjects = [subject(model="x y"), subject(model="z")]
    with pytest.raises(UserError) as error:
        Selector.parse(text).check(subjects)
    assert "\"model='x y'\"" in error.value.fix
    with pytest.raises(UserError) as error:
        Selector.parse("model=w y").check(subjects)
    assert "quotes" not in error.value.fix


@pytest.mark.parametrize("text", ['model="a', "model='a b", "it's", "''"])
def test_quotes_that_are_not_closed_or_name_nothing_are_refused(text):
    with pytest.raises(UserError):
        Selector.parse(text)


LABEL = st.text("abcxyz019.+-_", min_size=1, max_size=6)


@given(LABEL, st.lists(LABEL, min_size=1, max_size=4))
def test_unequal_is_the_negation_of_equal(label, values):
    one, joined = subject(model=label), ",".join(values)
    assert Selector.parse(f"model={joined}").matches(one) != Selector.parse(f"model!={joined}").matches(one)


@given(LABEL, st.lists(LABEL, min_size=1, max_size=4))
def test_commas_are_or(label, values):
    one = subject(model=label)
    each = [Selector.parse(f"model={value}").matches(one) for value in values]
    assert Selector.parse(f"model={','.join(values)}").matches(one) == any(each)


@given(LABEL, LABEL, LABEL, LABEL)
def test_spaces_are_and(model, task, model_asked, task_asked):
    one = subject(model=model, task=task)
    both = Selector.parse(f"model={model_asked} task={task_asked}").matches(one)
    apart = [Selector.parse(text).matches(one) for text in (f"model={model_asked}", f"task={task_asked}")]
    assert both == all(apart)


@given(st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6) | st.booleans() | st.none() | LABEL)
def test_a_value_matches_what_it_is_shown_as(value):
    one = subject()._replace(config={"key": value})
    assert Selector.parse(f"key={scalar_text(value)}").matches(one)


@given(st.lists(st.text("abc", min_size=1, max_size=3), max_size=4))
def test_a_list_matches_itself_and_each_of_its_elements(values):
    one = subject()._replace(config={"key": values})
    assert Selector.parse(f"key={'+'.join(values)}").matches(one)
    assert all(Selector.parse(f"key={value}").matches(one) for value in values)


def test_words_of_one_key_that_no_cell_has_together_make_no_sense_unless_a_removed_label_has_them() -> None:
    cells = [Subject({"seed": seed}, {}, {"steps": 30}) for seed in ("0", "1")]
    for text in ("seed=0 seed=1", "seed=0 seed!=0"):
        Selector.parse(text).check(cells)
        with pytest.raises(UserError, match="demands of seed"):
            Selector.parse(text).check(cells, together=True)
    Selector.parse("seed=0,1 seed!=0").check(cells, together=True)
    Selector.parse("seed=2 seed=2*").check(cells, labels={"seed": ("2",)}, together=True)
    Selector.parse("steps=10,20 steps!=20").check(cells, together=True)
