"""The fine-tuning stages."""
