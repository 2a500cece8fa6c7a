"""Polysweep: a sweep composed once, run anywhere, collected from one store."""

__version__ = "0.1.0"
