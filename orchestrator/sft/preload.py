"""Imported once by the fork server, so that a child starts in a tenth of a second instead of six.

Importing it runs no tensor operation and opens no GPU: a fork after either may hang.
"""
