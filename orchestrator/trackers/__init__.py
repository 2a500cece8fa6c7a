"""Trackers, which store the metrics of running stages, and mirrors, which copy them to other systems."""
