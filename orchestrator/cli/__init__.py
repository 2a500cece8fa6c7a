"""The command `sweep`: one module for each verb. It parses arguments, calls the API and prints the result."""
