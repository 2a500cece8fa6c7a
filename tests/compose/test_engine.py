"""The engine's settings: where the store is, limits of stages, and changes on top of a former launch."""

from __future__ import annotations

import pytest

from orchestrator.compose.overrides import run_settings, run_settings_with

SWEEP = """
config: {a: 1}
stages: {count: {command: "true", reads: [a]}}
"""


@pytest.mark.parametrize(
    "url", ["~/zz", "a,b=1", "s3://x/y?z=[1", "'quoted'", "${x}", r"a\\${x}", "with space"]
)
def test_the_store_of_the_command_line_is_taken_as_it_stands(project, url):
    override = f"store.url={url}"
    assert project.sweep(SWEEP, "store.url=/other", override).settings.store.url == url
    settings = run_settings([override], cwd=project.folder)
    assert settings.store.url == url
    assert run_settings_with(settings, ["launcher.workers=1"], cwd=project.folder).store.url == url


@pytest.mark.parametrize(
    "override",
    [
        "policy.limits_s.count=1.5",
        "+policy.limits_s.count=1.5",
        "policy.limits_s={count: 1.5}",
        "policy={limits_s: {count: 1.5}}",
    ],
)
def test_the_limit_of_a_stage_is_set_in_any_way_of_writing(project, override):
    assert project.sweep(SWEEP, override).settings.policy.limits_s == {"count": 1.5}


def test_settings_of_a_former_launch_stay_but_for_what_is_changed(project):
    project.write("conf/launcher/mine.yaml", "name: mine\nspeed: 3\n")
    former = run_settings(
        ["launcher=mine", "launcher.speed=4", "policy.lease_s=7", "policy.limits_s.count=2"],
        cwd=project.folder,
    )
    assert run_settings_with(former, [], cwd=project.folder) == former
    changed = run_settings_with(
        former, ["launcher.speed=5", "policy.limits_s={fit: 3}", "policy.grace_s=1"], cwd=project.folder
    )
    assert changed.launcher == {"name": "mine", "speed": 5}
    assert changed.policy.limits_s == {"count": 2, "fit": 3}
    assert (changed.policy.lease_s, changed.policy.grace_s) == (7, 1)


def test_a_group_choice_replaces_its_section_of_a_former_launch(project):
    project.write("conf/launcher/mine.yaml", "name: mine\nspeed: 3\n")
    former = run_settings(["launcher=mine", "policy.lease_s=7"], cwd=project.folder)
    changed = run_settings_with(former, ["launcher.workers=2", "launcher=local"], cwd=project.folder)
    assert changed.launcher["name"] == "local"
    assert changed.launcher["workers"] == 2
    assert "speed" not in changed.launcher
    assert changed.policy.lease_s == 7
