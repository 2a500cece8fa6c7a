"""All bugs."""

from tests.simulation.bugs.jobs import JOBS
from tests.simulation.bugs.workers import WORKERS

BUGS = (*WORKERS, *JOBS)
