"""Surroundings: random streams, devices, the program's settings and threads."""
