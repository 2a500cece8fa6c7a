"""Slurm: a thin submitter over sbatch, what it is asked, and the process that a job runs."""
