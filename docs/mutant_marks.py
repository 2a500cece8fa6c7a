"""Write down which marked lines run; docs/mutant_tests.py puts the marks and reads the file.

A copy of this module lies in the folder in which the tests run. Each process appends to the file once a line.
"""

from __future__ import annotations

import os
from pathlib import Path

FILE = Path(__file__).with_name("mutant_marks.txt")
seen: set[int] = set()


def mark(number: int) -> None:
    """Record that a line runs, once in each process."""
    if number not in seen:
        seen.add(number)
        handle = os.open(FILE, os.O_WRONLY | os.O_APPEND)
        os.write(handle, f"{number}\n".encode())
        os.close(handle)
