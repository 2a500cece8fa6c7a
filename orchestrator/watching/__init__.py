"""The live view of a sweep in a terminal: what `sweep watch` shows."""
