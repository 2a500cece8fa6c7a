"""Stages that run in several processes, on one machine or over the nodes of a Slurm job."""
