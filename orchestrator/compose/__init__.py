"""Compose a sealed `Sweep` from a sweep file, config folders and overrides. Only this package uses Hydra."""
