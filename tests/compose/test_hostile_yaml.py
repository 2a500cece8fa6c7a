"""Files and overrides that are small to write and large to expand end at once, with the reason."""

from __future__ import annotations

import pytest

from orchestrator.compose.files import find_sweeps
from orchestrator.compose.main import compose
from orchestrator.errors import UserError

STAGE = "stages: {fit: {command: 'echo {config.a}', reads: [a]}}\n"
ALIASES = "config:\n a: &a0 [1, 2]\n"

FILES = {
    "an alias of itself": (
        "x: &x [*x]\nconfig: {a: 1}\n",
        "alias names the mapping or list in which",
        "line 1",
    ),
    "a config in itself": (
        "config: &c {a: 1, b: *c}\n",
        "alias names the mapping or list in which",
        "line 1",
    ),
    "2,000 levels": (
        "config: {a: " + "[" * 2000 + "]" * 2000 + "}\n",
        "nests more than 64 levels",
        "own.yaml",
    ),
    "200 levels": ("config: {a: " + "[" * 200 + "]" * 200 + "}\n", "nests more than 64 levels", "line 1"),
    "a chain of aliases": (
        ALIASES + "".join(f" a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 500)),
        "nests more than 64 levels",
        "line ",
    ),
    "ten levels of ten aliases": (
        ALIASES + "".join(f" a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 11)),
        "aliases expand to more than 1,000,000 values",
        "line ",
    ),
    "a range without end": ("config: {a: 1}\naxes: {a: 'range(0,1000000000000)'}\n", "1,000,000,000,000", ""),
    "a million points": (
        "config: {a: 1, b: 1}\naxes: {a: 'range(0,1000)', b: 'range(0,1000)'}\n",
        "1,000 x 1,000 = 1,000,000 points",
        "own.yaml",
    ),
    "a key twice": ("config: {a: 1, a: 2}\n", "the key 'a' is given twice", "line 1, column 16"),
    "a number as a key twice": ("config: {a: 1, 1: 2, 1: 3}\n", "the key '1' is given twice", "line 1"),
    "a tab": ("config:\n\ta: 1\n", "YAML syntax error", "line 2"),
    "two documents": ("config: {a: 1}\n---\nconfig: {a: 1}\n", "another document", "line 2"),
    "a tag that runs code": ("config: {a: !!python/object/apply:os.getcwd []}\n", "tag", "line 1"),
    "half a character": ('config: {b: 1, a: "\\ud800"}\n', "half a character", "line 1, column 19"),
    "a list": ("- a\n", "a sweep file holds a mapping", "own.yaml"),
    "a word": ("hello\n", "the file holds str", "own.yaml"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_where_it_stands(project, name):
    text, what, where = FILES[name]
    (project.folder / "own.yaml").write_text(text + (STAGE if text.startswith(("config", "x:")) else ""))
    with pytest.raises(UserError) as error:
        project.compose("own.yaml")
    assert what in error.value.what
    assert where in error.value.where
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("data", [b"\xff\xfea", bytes(range(256)), "config: {a: 1}".encode("utf-16")])
def test_a_file_that_is_no_text_is_refused(project, data):
    (project.folder / "own.yaml").write_bytes(data)
    with pytest.raises(UserError, match=r"no UTF-8 text|unacceptable character"):
        project.compose("own.yaml")


def test_a_character_in_two_halves_as_json_writes_it_is_one(project):
    plain = project.sweep(f"config: {{a: \U0001f600}}\n{STAGE}").sweep
    assert project.sweep(f'config: {{a: "\\ud83d\\ude00"}}\n{STAGE}').sweep == plain


def test_an_error_of_a_value_names_its_key(project):
    with pytest.raises(UserError, match=r"config\.a: .*set"):
        project.sweep(f"config: {{a: !!set {{x, y}}}}\n{STAGE}")


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(project):
    plain = project.sweep(f"config: {{a: 1}}\n{STAGE}").sweep
    text = f"config: {{a: 1}}\n{STAGE}".replace("\n", "\r\n")
    (project.folder / "own.yaml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert project.compose("own.yaml").sweep == plain


def test_a_hostile_file_of_a_config_folder_is_named(project):
    project.write("conf/kind/a.yaml", "x: &x [*x]\n")
    project.write("conf/kind/b.yaml", "x: 1\nx: 2\n")
    for option, what in (("a", "alias names the mapping or list in which"), ("b", "given twice")):
        with pytest.raises(UserError) as error:
            project.sweep(f"config: {{defaults: [{{kind: {option}}}], a: 1}}\n{STAGE}")
        assert what in error.value.what
        assert f"conf/kind/{option}.yaml, line " in error.value.where


def test_links_in_a_circle_in_a_config_folder_do_no_harm(project):
    project.write("conf/kind/a.yaml", "x: 1\n")
    (project.folder / "conf/kind/up").symlink_to("..")
    (project.folder / "conf/kind/self.yaml").symlink_to("self.yaml")
    text = f"config: {{defaults: [{{kind: a}}], a: 1}}\naxes: {{kind: [a]}}\n{STAGE}"
    assert len(project.sweep(text).sweep.cells) == 1
    with pytest.raises(UserError, match="self"):
        project.sweep(text, "kind=self")


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("a=" + "[" * 1000 + "]" * 1000, "nests too deeply"),
        ("a=range(0,1000000000000)", "1,000,000,000,000 values"),
        ("a=range(0,10,1e-320)", "values"),
        (f"a=range(0,{'9' * 400})", "values"),
        ("a=${a}", "Recursive interpolation"),
        ("+" + "x" * 5000 + "=1", "File name too long"),
        ("max_cells=0", "more than max_cells: 0"),
        ("max_cells=many", "no number of cells"),
    ],
    ids=lambda value: value[:30],
)
def test_a_hostile_override_is_refused(project, override, what):
    with pytest.raises(UserError) as error:
        project.sweep(f"config: {{a: 1}}\n{STAGE}", override)
    assert what in error.value.what
    assert len(str(error.value)) < 500


def test_the_limit_on_the_grid_is_lifted_by_the_file_or_the_command_line(project):
    text = f"config: {{a: 1, b: 1}}\naxes: {{a: 'range(0,20)', b: 'range(0,20)'}}\nmax_cells: 300\n{STAGE}"
    with pytest.raises(UserError) as error:
        project.sweep(text)
    assert error.value.fix == "max_cells=400 if that is what you mean"
    few = text.replace("reads: [a]", "reads: [a, b]")
    assert len(project.sweep(few, "max_cells=400").sweep.cells) == 400
    assert len(project.sweep(few.replace("300", "400")).sweep.cells) == 400


def test_the_list_of_sweeps_does_not_walk_a_grid_that_is_too_large(project):
    text = "config: {a: 1, b: 1}\naxes: {a: 'range(0,9000)', b: 'range(0,9000)'}\nexclude: [a=1]\n" + STAGE
    project.write("sweeps/huge.yaml", text)
    (entry,) = [entry for entry in find_sweeps(project.folder) if entry.name == "huge"]
    assert (entry.num_cells, entry.error) == (None, None)
    with pytest.raises(UserError, match="81,000,000 points"):
        compose("huge", cwd=project.folder)
