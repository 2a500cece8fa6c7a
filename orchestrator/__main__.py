"""`python -m orchestrator` is `sweep`."""

import sys

from orchestrator.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
