"""What a user can do with sweeps and stores, as functions and values. Nothing here prints."""
