"""Launchers, each a module or a package: they get workers running, on this machine or through a scheduler."""
