"""The page of `sweep serve`: read-only HTML over the state of sweeps, on loopback, behind a token."""
