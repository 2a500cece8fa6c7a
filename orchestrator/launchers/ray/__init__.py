"""Ray: the cells of a sweep as workers of a Ray cluster, started by a driver that is a job of the cluster.

`launcher` submits the driver, from anywhere, through the Jobs API (`api`). `driver` runs on the cluster and
keeps as many workers as there is work for; `lost_workers` records which of them are gone. `actors` is the
only module that imports the library `ray`. `actor` runs on a node, where it starts `worker`, which claims
stages like any other worker.
"""
