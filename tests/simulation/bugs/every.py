"""All bugs."""

from tests.simulation.bugs.jobs import JOBS
from tests.simulation.bugs.ray import RAY
from tests.simulation.bugs.requests import REQUESTS
from tests.simulation.bugs.workers import WORKERS

BUGS = (*WORKERS, *JOBS, *REQUESTS, *RAY)
