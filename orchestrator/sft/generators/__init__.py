"""Engines that generate answers, by their names in `orchestrator.registry.GENERATORS`."""
