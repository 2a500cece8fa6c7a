"""The command `sweep`: one file a verb; each parses its words, calls the API and prints."""
