"""Jobs of schedulers: their records, the evidence of their ends, and the states that follow from it."""
