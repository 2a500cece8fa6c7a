"""What only a GPU can tell, in sections: `python benchmarks/gpu_check.py` runs them."""
