"""Starting workers: one module a launcher."""
