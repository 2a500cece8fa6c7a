"""The shared store: its operations, layout and records."""
