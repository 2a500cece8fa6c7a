"""Slurm: submission with sbatch, queries with squeue and sacct, and the process that each job runs."""
