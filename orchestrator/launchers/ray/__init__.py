"""Ray: the cells of a sweep as workers of a Ray cluster, started by a driver that is a job of the cluster."""
