"""The tables and figures of the study, computed from result rows."""
