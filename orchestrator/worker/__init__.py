"""The process on a compute node that claims stages and runs each in a child."""
