"""A stage from claim to end: the worker, its attempts, and the child process of each."""
