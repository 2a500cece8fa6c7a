"""A sweep under a virtual clock: the real decisions on a simulated cluster. No process is started."""
