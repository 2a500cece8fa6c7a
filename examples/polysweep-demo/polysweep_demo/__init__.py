"""One plugin of each kind for Polysweep; see docs/plugins.md there."""
