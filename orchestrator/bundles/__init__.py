"""Bundles: a finished sweep as one file that a stranger can verify."""
