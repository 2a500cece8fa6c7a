"""All bugs."""

from tests.simulation.bugs.folder import FOLDER

BUGS = FOLDER
