"""Where the metrics of a running stage go."""
