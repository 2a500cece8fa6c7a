"""The batch script: its options, and what bash makes of it, with a script for `srun`."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import UserError
from orchestrator.jobs.records import Resources
from orchestrator.launchers.slurm.launcher import SlurmLauncher
from orchestrator.launchers.slurm.options import ignored_variables, unexpanded
from orchestrator.launchers.slurm.query import environment
from orchestrator.launchers.slurm.script import script
from orchestrator.launchers.slurm.settings import cluster_profile
from orchestrator.processes import leave_step
from tests.store.builders import submission_of

SRUN = """#!/bin/bash
{ printf '%s\\0' "$@"; echo; env -0; } >"$SAID"
"""

VARIABLES = """
ACCOUNT ACCTG_FREQ ARRAY_INX BATCH CLUSTERS COMMENT CONSTRAINT CONTAINER CORE_SPEC CPUS_PER_GPU
DEBUG DELAY_BOOT DISTRIBUTION EXCLUSIVE EXPORT GET_USER_ENV GPU_BIND GPU_FREQ GPUS GPUS_PER_NODE
GPUS_PER_TASK GRES GRES_FLAGS HINT IGNORE_PBS JOB_NAME MEM_BIND MEM_PER_CPU MEM_PER_GPU MEM_PER_NODE
NETWORK NO_KILL NO_REQUEUE OPEN_MODE OUTPUT OVERCOMMIT PARTITION POWER PROFILE QOS RESERVATION
REQ_SWITCH REQUEUE SIGNAL SPREAD_JOB THREAD_SPEC TIMELIMIT USE_MIN_NODES WAIT WAIT_ALL_NODES WCKEY
"""
"""What sbatch reads from the environment (its manual page, "INPUT ENVIRONMENT VARIABLES")."""


def text_of(
    profile: dict[str, Any],
    folder: Path = Path("/work"),
    logs: Path | None = None,
    after: tuple[str, ...] = (),
    **more: Any,
) -> str:
    """The script of a submission of two cells."""
    asked = Resources(gpus_per_node=2, cpus=4, memory_gib=8, **more)
    submission = submission_of(
        name="s.1.ab",
        tasks=(("a",), ("b",)),
        resources=asked,
        exclude=("node9",),
        folder=str(folder),
        after=after,
        after_s=500.0,
    )
    return script(
        submission,
        cluster_profile(profile),
        store=str(folder / "store"),
        sweep="s",
        code=folder / "store/code/0",
        logs=logs or folder / "logs",
    )


def options_of(text: str) -> dict[str, str]:
    """The options of sbatch in a script."""
    return dict(
        re.fullmatch(r"#SBATCH --([\w-]+)=?(.*)", line).groups()  # type: ignore[union-attr]
        for line in text.splitlines()
        if line.startswith("#SBATCH")
    )


class Ran:
    """What bash made of a script: how it ended, and what srun was given, and in which environment."""

    def __init__(self, text: str, folder: Path, **variables: str) -> None:
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin/srun").write_text(SRUN)
        (folder / "bin/srun").chmod(0o755)
        (folder / "slurm_script").write_text(text)
        said = folder / "said"
        done = subprocess.run(
            ["bash", folder / "slurm_script"],
            env={"PATH": f"{folder}/bin:{os.environ['PATH']}", "SAID": str(said), **variables},
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
        )
        self.code, self.log = done.returncode, done.stdout + done.stderr
        words, _, rest = (said.read_bytes() if said.exists() else b"\n").partition(b"\0\n")
        self.words = words.decode().split("\0") if said.exists() else []
        pairs = (pair.decode().partition("=") for pair in rest.split(b"\0") if pair)
        self.environment = {name: value for name, _, value in pairs}


# Options


@pytest.mark.parametrize(
    ("sbatch", "expected"),
    [
        ({"hold": False, "mail-user": None}, {"hold": None, "mail-user": None}),
        ({"hold": True}, {"hold": ""}),
        ({"mem-per-cpu": "2G"}, {"mem-per-cpu": "2G", "mem": None}),
        ({"mem_per_gpu": "40G"}, {"mem-per-gpu": "40G", "mem": None}),
        ({"mem": None}, {"mem": None}),
        ({"mem": 0}, {"mem": "0"}),
        ({"--cpus_per_task": 7}, {"cpus-per-task": "7"}),
        ({"c": 7}, {"cpus-per-task": "7"}),
        ({"cpus-per-gpu": 3}, {"cpus-per-gpu": "3", "cpus-per-task": None}),
        ({"cpus-per-task": False}, {"cpus-per-task": None}),
        ({"gpus-per-task": "h100:1"}, {"gpus-per-task": "h100:1", "gres": None}),
        ({"G": 1}, {"gpus": "1", "gres": None}),
        ({"G": 0}, {"gpus": "0", "gres": None}),
        ({"gres": "gpu:h100:1"}, {"gres": "gpu:h100:1"}),
        ({"gres": "gres/gpu:1"}, {"gres": "gres/gpu:1"}),
        ({"gres": "GPU:1"}, {"gres": "GPU:1"}),
        ({"gres": "lscratch:100"}, {"gres": "gpu:2,lscratch:100"}),
        ({"tres-per-task": "gres/gpu:1"}, {"gres": None, "cpus-per-task": "4"}),
        ({"tres-per-task": "cpu=4"}, {"gres": "gpu:2", "cpus-per-task": None}),
        ({"part": "long"}, {"partition": "long", "part": None}),
        ({"mem-per-c": "2G"}, {"mem-per-cpu": "2G", "mem": None}),
        ({"S": 2, "m": "block"}, {"core-spec": "2", "distribution": "block"}),
        ({"time-min": 5}, {"time-min": "5", "time": "60"}),
        ({"gres": None}, {"gres": None}),
        ({"ntasks": 4}, {"ntasks": "4", "ntasks-per-node": None}),
        ({"exclude": "node1"}, {"exclude": "node9,node1"}),
        ({"no-requeue": True}, {"no-requeue": "", "requeue": None}),
        ({"requeue": False, "signal": None, "time": None}, {"requeue": None, "signal": None, "time": None}),
        ({"open-mode": None, "nodes": None}, {"open-mode": None, "nodes": None}),
        ({"p": "long"}, {"partition": "long"}),
        ({"export": "NONE"}, {"export": "NONE"}),
    ],
)
def test_every_option_of_ours_can_be_replaced_or_dropped_in_any_spelling(sbatch, expected):
    given = options_of(text_of({"sbatch": sbatch}))
    assert {name: given.get(name) for name in expected} == expected


def test_a_job_that_would_wait_for_gates_starts_some_minutes_after_the_jobs_that_run_them():
    after = ("12_0", "12_3", "13_0")
    assert options_of(text_of({}, after=after))["dependency"] == "after:12_0+9:12_3+9:13_0+9"
    assert "dependency" not in options_of(text_of({}))
    given = options_of(text_of({"sbatch": {"d": "singleton"}}, after=after))
    assert given["dependency"] == "singleton"


@pytest.mark.parametrize(
    "option",
    ["array", "job-name", "J", "job", "arr", "output", "wait", "W", "time", "test-only", "wrap", "V", "help"],
)
def test_options_that_jobs_are_found_by_are_refused_with_what_to_set(option):
    with pytest.raises(UserError, match="ours to set") as refused:
        SlurmLauncher({}, 1, {"sbatch": {option: "1"}})
    assert "in its place: " in refused.value.where


@pytest.mark.parametrize(
    ("sbatch", "words"),
    [
        ({"mem": 1, "--mem": 2}, "twice"),
        ({"comment": "a\nb"}, "one line"),
        ({"clusters": "a,b"}, "several clusters"),
        ({"mem 1": 1}, "no name of an option"),
    ],
)
def test_options_that_sbatch_could_not_read_are_refused(sbatch, words):
    with pytest.raises(UserError) as refused:
        SlurmLauncher({}, 1, {"sbatch": sbatch})
    assert words in str(refused.value)


def test_a_variable_that_sbatch_would_read_is_told_with_the_setting_that_takes_its_place():
    mine = {
        "SBATCH_ACCOUNT": "x",
        "SLURM_CLUSTERS": "far",
        "SBATCH_TIMELIMIT": "5",
        "SBATCH_MEM_PER_CPU": "1G",
        "SBATCH_OUTPUT": "x",
    }
    notes = "\n".join(ignored_variables(mine, cluster_profile({})))
    for setting in (
        "cluster.account=x",
        "+cluster.sbatch.clusters=far",
        "cluster.hours",
        "mem-per-cpu=1G",
        "cluster.logs",
    ):
        assert setting in notes
    assert not ignored_variables({"SBATCH_ACCOUNT": "x"}, cluster_profile({"account": "y"}))
    assert not ignored_variables({"SBATCH_PARTITION": "x"}, cluster_profile({"sbatch": {"p": "y"}}))
    assert not ignored_variables(
        {"SLURM_JOB_ID": "1", "SLURM_GPUS_PER_NODE": "2", "PATH": "/bin"}, cluster_profile({})
    )


@pytest.mark.parametrize(
    "name",
    VARIABLES.split(),
)
def test_what_a_note_on_a_variable_of_sbatch_says_to_set_is_taken(name):
    notes = ignored_variables({f"SBATCH_{name}": "x"}, cluster_profile({}))
    if name == "DEBUG":  # changes what sbatch prints
        assert not notes
    elif match := re.search(r"\+cluster\.sbatch\.([\w-]+)=(\w+)", notes[0]):
        value = True if match[2] == "true" else match[2]
        assert match[1] in options_of(text_of({"sbatch": {match[1]: value}}))
    else:
        assert not re.search(r"say (jobs|cluster\.(logs|signal))", notes[0])


def test_a_value_that_a_shell_would_expand_is_told():
    (note,) = unexpanded(cluster_profile({"environment": {"A": "/x/$USER/y", "B": "$5", "C": 1}}))
    assert "cluster.environment.A has $USER" in note and "cluster.setup" in note


def test_slurms_programs_get_no_option_from_the_environment_but_where_slurm_is():
    foreign = [
        *(
            "SQUEUE_PARTITION",
            "SQUEUE_FORMAT",
            "SACCT_FORMAT",
            "SCANCEL_STATE",
            "SBATCH_ACCOUNT",
            "SINFO_SORT",
        ),
        *("SCONTROL_ALL", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "SLURM_JOB_ID", "SRUN_DEBUG", "SALLOC_GRES"),
    ]
    kept = ["SLURM_CONF", "SLURM_JWT", "PATH", "SLURMD", "LC_TIME"]
    given = environment(dict.fromkeys([*foreign, *kept, "SLURM_BITSTR_LEN"], "x"))
    assert given.pop("SLURM_BITSTR_LEN") == "0"  # sacct shortens no list of tasks
    assert set(given) == set(kept)


def test_stages_see_the_job_and_nothing_of_the_task_that_runs_them():
    task = [
        "NTASKS",
        "NPROCS",
        "PROCID",
        "LOCALID",
        "NODEID",
        "STEP_ID",
        "STEPID",
        "NTASKS_PER_NODE",
        "GTIDS",
    ]
    job = [
        "JOB_ID",
        "ARRAY_TASK_ID",
        "JOB_NODELIST",
        "TASKS_PER_NODE",
        "JOB_GPUS",
        "JOB_NUM_NODES",
        "MEM_PER_NODE",
    ]
    seen = dict.fromkeys([f"SLURM_{name}" for name in (*task, *job)] + ["PMI_RANK", "PMIX_RANK", "HOME"], "1")
    leave_step(seen)
    assert set(seen) == {*(f"SLURM_{name}" for name in job), "HOME"}


# What bash makes of it


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "two words",
        'say "x"',
        "it's",
        '{"a": ["$HOME", `x`]}',
        "a\nb\n",
        "a\r\nb",
        "\\n\\",
        "é 日本",
        "",
        "\t",
    ],
)
def test_a_variable_arrives_byte_for_byte(tmp_path, value):
    text = text_of({"environment": {"MINE": value}}, tmp_path)
    assert "\r" not in text
    assert Ran(text, tmp_path).environment["MINE"] == value


@pytest.mark.parametrize(
    ("value", "arrives"), [(True, "true"), (False, "false"), (0, "0"), (0.5, "0.5"), (None, "old")]
)
def test_booleans_and_numbers_arrive_as_json_writes_them_and_null_leaves_a_variable_alone(
    tmp_path, value, arrives
):
    ran = Ran(text_of({"environment": {"MINE": value}}, tmp_path), tmp_path, MINE="old")
    assert ran.environment["MINE"] == arrives


def test_the_step_overlaps_exports_all_and_reads_no_option_from_the_environment(tmp_path):
    variables = {"SLURM_EXPORT_ENV": "NONE", "SLURM_STDOUTMODE": "/dev/null", "SLURM_JOB_ID": "7"}
    ran = Ran(text_of({"environment": {"PYTHONPATH": "/mine"}}, tmp_path), tmp_path, **variables)
    assert {"--overlap", "--export=ALL", "--ntasks=1", "--cpus-per-task=4"} <= set(ran.words)
    assert not {"SLURM_EXPORT_ENV", "SLURM_STDOUTMODE"} & ran.environment.keys()
    assert ran.environment["SLURM_JOB_ID"] == "7"
    assert ran.environment["PYTHONPATH"] == f"{tmp_path}/store/code/0:/mine"
    assert "--cpus-per-task" not in " ".join(
        Ran(text_of({"sbatch": {"cpus-per-gpu": 1}}, tmp_path), tmp_path).words
    )


BODY = 'module() { echo "loading $2"; [ "$2" != gone ] && return 0; echo "cannot load $2" >&2; return 1; }'


@pytest.mark.parametrize(
    ("lines", "failed"),
    [
        (["module load cuda"], None),
        (["module load cuda", "module load gone", "echo not reached"], (3, 1, "module load gone")),
        (["no_such_command --x"], (2, 127, "no_such_command --x")),
        (["source /nowhere/activate"], (2, 1, "source /nowhere/activate")),
        (["[ -e /nowhere ] && module load gone", "module load gone || true"], None),
        (["if [ -e /nowhere ]; then", "  module load gone", "fi", "! module load gone"], None),
        (["if true; then", "  module load gone", "fi"], (3, 1, "  module load gone")),
        (["if true\nthen module load gone\nfi"], (3, 1, "then module load gone")),
        (["source ./noisy.sh"], None),
        (["set -u", 'X="${NOT_SET:-default}"', "for x in a b; do [ $x = a ] && echo $x; done"], None),
        (["set -e", "module load gone"], (3, 1, "module load gone")),
        (["conda() { false; true; }", "conda activate mine"], None),
        (["cat <<END >note", "module load gone", "END"], None),
        (["set -o pipefail", "false | cat"], (3, 1, "false | cat")),
    ],
)
def test_a_line_of_setup_that_fails_ends_the_job_and_is_named(tmp_path, lines, failed):
    (tmp_path / "noisy.sh").write_text("false\n[ -e /nowhere ]\ntrue\n")
    ran = Ran(text_of({"setup": [BODY, *lines]}, tmp_path), tmp_path)
    if failed is None:
        assert (ran.code, bool(ran.words)) == (0, True), ran.log
    else:
        number, code, line = failed
        assert (ran.code, ran.words) == (78, []), ran.log
        assert (
            ran.log.splitlines()[-1]
            == f"sweep: line {number} of cluster.setup failed with exit code {code}: {line}"
        )


def test_a_setup_that_ends_by_itself_keeps_its_exit_code_unless_it_would_look_as_if_it_had_worked(tmp_path):
    assert Ran(text_of({"setup": ["exit 9"]}, tmp_path), tmp_path).code == 9
    nothing = Ran(text_of({"setup": ["true", "exit 0"]}, tmp_path), tmp_path)
    assert (nothing.code, nothing.words) == (78, [])
    said = "sweep: line 'exit 0' of cluster.setup ended the job, with exit code 0: no worker was started"
    assert nothing.log.splitlines()[-1] == said
    unbound = Ran(text_of({"setup": ["set -u", "echo $NOT_SET"]}, tmp_path), tmp_path)
    assert unbound.code not in (0, 78) and "NOT_SET: unbound variable" in unbound.log


# Paths


@pytest.mark.parametrize(
    "name", ["100%", "%j", "two words", "it's", 'a"b', "#7", "é日", "$HOME", "a;b", "-x"]
)
def test_paths_with_odd_characters_are_passed_on(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    text = text_of({}, folder)
    ran = Ran(text, tmp_path)
    assert str(folder / "store") in ran.words
    assert ran.environment["PYTHONPATH"] == str(folder / "store/code/0")
    assert options_of(text)["output"] == shlex.quote(
        f"{folder}/logs/%a.log".replace(name, name.replace("%", "%%"))
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a\\b", "backslash"),
        ("a:b", "colon"),
        ("a\nb", "no batch script can hold"),
        ("a\tb", "no batch script"),
    ],
)
def test_paths_that_slurm_cannot_pass_on_are_refused_with_the_reason(name, words):
    with pytest.raises(UserError, match=words):
        text_of({}, Path("/work") / name)


@pytest.mark.parametrize("line", ["#SBATCH --mem=1", "  #SBATCH hetjob"])
def test_an_option_of_sbatch_among_the_setup_lines_is_refused_as_it_would_be_a_comment(line: str) -> None:
    with pytest.raises(UserError, match=r"cluster\.setup: '#SBATCH .* would have no effect"):
        cluster_profile({"setup": ["module load cuda", line]})
    cluster_profile({"setup": ["module load cuda", "# SBATCH options are elsewhere"]})
