"""Pure decisions and data types: no I/O, no clock, no environment, no randomness."""
