"""Engines that compute jobs in other processes: on this machine, on a Ray cluster, on a Slurm cluster. No torch."""
