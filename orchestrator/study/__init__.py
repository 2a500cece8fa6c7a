"""From result rows to tables and figures."""
