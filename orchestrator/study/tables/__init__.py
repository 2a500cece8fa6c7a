"""The tables of the study: the rows that they read, and the text that they show."""
