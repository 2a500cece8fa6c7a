"""Parts of `failure_causes.py`: failures with a known cause, and what is done to jobs from outside."""
