"""Module that the fork server imports once, so that a child starts in 0.1 seconds instead of six.

Its import runs no tensor operation and opens no GPU, because a process forked after either may hang.
"""
