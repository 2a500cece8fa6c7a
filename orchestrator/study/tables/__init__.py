"""The tables of the study: reading result rows, and formatting results."""
