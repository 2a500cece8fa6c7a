"""Unmodified Hydra apps as jobs of a real Slurm."""

from __future__ import annotations

import pytest

from tests.apps import app
from tests.apps.there import assert_a_task_sees_what_it_sees_here, assert_an_app_goes_on_from_its_checkpoint
from tests.slurm.sweeps import SLURM, OnSlurm


@pytest.fixture
def there(jobs: OnSlurm) -> OnSlurm:
    """The command of a user whose environment the app reads."""
    jobs.env = {**jobs.env, **app.ENVIRONMENT, "PATH": app.environment()["PATH"]}
    return jobs


@pytest.mark.long
def test_a_task_sees_what_it_sees_here(there: OnSlurm) -> None:
    assert_a_task_sees_what_it_sees_here(there, *SLURM)


@pytest.mark.long
def test_an_app_goes_on_from_its_checkpoint(there: OnSlurm) -> None:
    assert_an_app_goes_on_from_its_checkpoint(there, *SLURM)
