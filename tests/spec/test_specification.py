"""The protocol as it is specified holds in every state of every size; each broken rule of it is found out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.spec.check import CALM, HERE, SIZES, check, missing, with_constants

pytestmark = pytest.mark.skipif(missing() != "", reason=f"not on this machine: {missing()}")

DEADLOCK = "deadlock"
LIVE = "from every state, the cell can be done, or there is a reason why it is not"


class Broken(NamedTuple):
    """A rule of a specification, broken on purpose.

    Attributes:
        spec: The specification.
        old: A text of it.
        new: What takes its place.
        violated: The property that does not hold any more.
        constants: The size at which that shows.
    """

    spec: str
    old: str
    new: str
    violated: str
    constants: Mapping[str, int | bool]


LOST = CALM | {"ATTEMPTS": 2, "GENERATIONS": 1, "LOST_REPLIES": 1}
KILLED = CALM | {"ATTEMPTS": 2, "GENERATIONS": 1, "CRASHES": 1}
DISCARDED = CALM | {"ATTEMPTS": 2, "DISCARDS": 1}
RETIRED = CALM | {"ATTEMPTS": 2, "DISCARDS": 1, "RETAINS": True}
SOME = {"FORGETS": 0, "RESTARTS": 0, "GAPS": 0}

BROKEN = {
    "a lost reply counts as won": Broken(
        "stages",
        "elsif attempt[me.stage][me.number].owner = w & attempt[me.stage][me.number].life = me.life then",
        "elsif true then",
        "1: an attempt has one owner at most",
        LOST,
    ),
    "the nonce of an earlier process counts as one's own": Broken(
        "stages",
        " & attempt[me.stage][me.number].life = me.life then",
        " then",
        "1: who owns an attempt is named by its claim",
        LOST | {"CRASHES": 1},
    ),
    "a claim replaces another": Broken(
        "stages",
        "    if !attempt[me.stage][me.number].claimed then\n      me.late",
        "    if true then\n      me.late",
        "1: an attempt has one owner at most",
        KILLED,
    ),
    "done comes before the files": Broken(
        "stages",
        "    me.place := writing;\n",
        "    me.place := checking;\n",
        "2: files are whole before the record that names them",
        KILLED,
    ),
    "done is recorded when a part of the files is there": Broken(
        "stages",
        "    me.place := finishing_files;\n",
        "    me.place := checking;\n",
        "2: files are whole before the record that names them",
        KILLED,
    ),
    "done replaces another's": Broken(
        "stages",
        '  rule "creates done"\n    me.place = publishing\n  ==>\n  begin\n'
        "    if !product[me.stage][me.generation].done then",
        '  rule "creates done"\n    me.place = publishing\n  ==>\n  begin\n    if true then',
        "2: an attempt that succeeded has the product",
        KILLED,
    ),
    "a generation is chosen when the product is made": Broken(
        "stages",
        "    me.place := checking;\n",
        "    me.place := checking;\n    if current(me.stage) != 0 then me.generation := current(me.stage); end;\n",
        "2: a product is of the generation that its attempt's claim fixed",
        DISCARDED,
    ),
    "a product whose input was discarded counts": Broken(
        "stages",
        "  return s = a | !was_discarded(a, product[s][g].input);",
        "  return true;",
        "2: what counts was not made from what was discarded",
        DISCARDED,
    ),
    "a product that was made of a discarded one is not voided": Broken(
        "stages",
        "      me.place = idle & product[b][g].done & product[b][g].validity = valid & was_discarded(a, product[b][g].input)",
        "      false",
        DEADLOCK,
        DISCARDED,
    ),
    "a read voids what is whole": Broken(
        "stages",
        "    & attempt[s][product[s][g].attempt].payload = damaged\n    ==>",
        "    ==>",
        "2: only what is damaged or was discarded is void",
        CALM | {"ATTEMPTS": 2, "DAMAGES": 1},
    ),
    "a retired file counts as damaged": Broken(
        "stages",
        "    & attempt[s][product[s][g].attempt].payload = damaged\n    ==>",
        "    & attempt[s][product[s][g].attempt].payload != whole\n    ==>",
        "2: only what is damaged or was discarded is void",
        RETIRED,
    ),
    "the winner does not look again": Broken(
        "stages",
        "    if product[me.stage][me.generation].done | product[me.stage][me.generation].validity != valid then\n"
        "      me.place := giving_back;\n    elsif me.stage = b & product[a][me.input].retired then",
        "    if me.stage = b & product[a][me.input].retired then",
        "3: no attempt starts where the product was there when it was claimed",
        KILLED,
    ),
    "a number may be skipped": Broken(
        "stages",
        "      me.number := last(s) + 1;\n      me.generation := current(s);\n      me.supersedes := true;",
        "      me.number := ATTEMPTS;\n      me.generation := current(s);\n      me.supersedes := true;",
        "3: attempts are numbered without a gap",
        KILLED | {"ATTEMPTS": 3},
    ),
    "the successor of an open attempt gives no cause": Broken(
        "stages",
        "me.supersedes := true;",
        "me.supersedes := false;",
        "3: an attempt that was followed has an end, or its successor gives the cause",
        KILLED,
    ),
    "lost attempts have no budget": Broken(
        "stages",
        "      & num_spent(s) + (last(s) > after[s] ? 1 : 0) <= RETRIES\n",
        "",
        "3: a stage is started only while its budget lasts",
        CALM | {"GENERATIONS": 1, "RETRIES": 0, "ATTEMPTS": 3},
    ),
    "an end is written while the child still runs": Broken(
        "stages",
        "    attempt[me.stage][me.number].saved := true;\n",
        "    attempt[me.stage][me.number].saved := true;\n    attempt[me.stage][me.number].ending := released;\n",
        "5: nothing of an attempt runs after its end",
        KILLED,
    ),
    "an attempt goes on from a discarded checkpoint": Broken(
        "stages",
        "         & !was_discarded(me.stage, attempt[me.stage][n].generation)\n",
        "",
        "6: an attempt goes on from nothing that was made of what was discarded before its start",
        DISCARDED,
    ),
    "an attempt goes on from what was made of a discarded input": Broken(
        "stages",
        "         & !(me.stage = b & was_discarded(a, attempt[me.stage][n].input)) then",
        "         then",
        "2: what counts was not made from what was discarded",
        DISCARDED,
    ),
    "files are deleted before the record": Broken(
        "stages",
        "    me.place := retiring;\n",
        "    me.place := retiring;\n    attempt[a][product[a][current(a)].attempt].payload := deleted;\n",
        "7: a file that is gone was retired first",
        RETIRED,
    ),
    "what read a retired input may finish": Broken(
        "stages",
        "    if me.stage = b & (product[a][me.input].retired | was_discarded(a, me.input)) then",
        "    if me.stage = b & was_discarded(a, me.input) then",
        "7: what read an input that was not whole makes no product",
        RETIRED,
    ),
    "a cancelled stage is claimed": Broken(
        "stages",
        "  return !is_cancelled() & num_spent(s) <= RETRIES;",
        "  return num_spent(s) <= RETRIES;",
        "8: no stage is claimed by a look after a cancel",
        CALM | {"ATTEMPTS": 2, "GENERATIONS": 1, "REQUESTS": 1},
    ),
    "a retired input blocks nothing, and nobody says so": Broken(
        "stages",
        "    if counts(a, current(a)) & product[a][current(a)].retired then return true; end;"
        "  -- blocked until a discard",
        "",
        DEADLOCK,
        RETIRED,
    ),
    "a job is submitted before its intent": Broken(
        "jobs",
        '  rule "sees a cell that no job holds"\n    me.place = idle & is_wanted() & !is_held()\n  ==>\n  begin\n',
        '  rule "sees a cell that no job holds"\n    me.place = idle & is_wanted() & !is_held()\n  ==>\n  begin\n'
        "    submission[last() + 1].in_transit := true;\n",
        "1: the scheduler is asked for nothing without an intent",
        SOME,
    ),
    "who lost the number submits all the same": Broken(
        "jobs",
        "      rest(l);  -- read everything anew\n",
        "      me.place := submitting;\n",
        "1: who lost the number submits nothing",
        SOME,
    ),
    "an unanswered submission is forgotten at once": Broken(
        "jobs",
        "    & (!SETTLES | !may_arrive(me.number))\n",
        "",
        "2: a job that lives holds its cell",
        SOME,
    ),
    "not listed is gone": Broken(
        "jobs",
        "    gaps_left := gaps_left - 1;\n",
        "    gaps_left := gaps_left - 1;\n"
        "    if submission[last()].accepted & submission[last()].closed = open then\n"
        "      me.place := closing; me.number := last(); me.ending := ended;\n    end;\n",
        "2: a job that lives holds its cell",
        {"LAUNCHES": 1},
    ),
    "a job that was given up claims": Broken(
        "jobs",
        "    it.works := it.closed = open;  -- what was given up claims nothing\n",
        "    it.works := true;\n",
        "1: a job that starts from a task that was given up claims nothing",
        {"SETTLES": False, "NUMBERS": 2, "LAUNCHES": 1},
    ),
    "a lost job is not looked for by its name": Broken(
        "jobs",
        "      & submission[k].phase != unknown & !submission[k].forgotten\n    ==>\n    begin\n"
        "      submission[k].accepted := true;",
        "      & false\n    ==>\n    begin\n      submission[k].accepted := true;",
        DEADLOCK,
        SOME | {"LAUNCHES": 1},
    ),
    "jobs have no budget": Broken(
        "jobs",
        "last() < NUMBERS & num_spent() <= RETRIES;",
        "last() < NUMBERS;",
        "3: jobs are submitted only while the budget lasts",
        {"LAUNCHES": 1, "RETRIES": 0, "NODE_FAILURES": 2, "RESTARTS": 0},
    ),
    "two equal requests are two": Broken(
        "jobs",
        "    if num_requests < me.request then\n",
        "    if num_requests < REQUESTS then\n      me.request := num_requests + 1;\n",
        "8: two equal requests are one",
        SOME,
    ),
}
QUICK = ("done replaces another's", "not listed is gone")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in BROKEN]
)
def test_a_broken_rule_violates_what_the_rule_is_for(name: str, tmp_path: Path) -> None:
    broken = BROKEN[name]
    text = (HERE / f"{broken.spec}.m").read_text()
    assert broken.old in text, "the specification has changed: break it as it is now"
    text = with_constants(text.replace(broken.old, broken.new, 1), broken.constants)
    assert check(text, tmp_path, optimize="-O1").violated == broken.violated


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "a scheduler that forgets" else pytest.mark.long)
        for name in SIZES
    ],
)
def test_the_protocol_holds_in_every_state(name: str, tmp_path: Path) -> None:
    size = SIZES[name]
    text = with_constants((HERE / f"{size.spec}.m").read_text(), size.constants)
    result = check(text, tmp_path)
    assert result.violated == "", result.output[-4000:]
    assert result.num_states > 1000
