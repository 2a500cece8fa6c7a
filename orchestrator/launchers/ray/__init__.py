"""Ray: a sweep's cells as workers of a Ray cluster, started by a driver that is a job of the cluster's.

`launcher` submits the driver, from anywhere, by the Jobs API (`api`); `driver` runs on the cluster and keeps
as many workers as there is work; `losses` knows which of them are gone; `pool` is the one door to the library
`ray`; `slot` is what runs on a node, and starts `worker`, which is a worker like any other.
"""
