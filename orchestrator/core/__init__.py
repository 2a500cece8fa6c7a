"""Pure decisions and shapes: no I/O, clock, environment or randomness."""
