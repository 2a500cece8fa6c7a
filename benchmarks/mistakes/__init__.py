"""Mistakes that are seeded into a sweep, and how launches with them are run."""
