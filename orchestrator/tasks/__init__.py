"""Benchmarks: their data, prompts and scorers."""
