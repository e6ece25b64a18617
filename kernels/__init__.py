"""Triton device code and its launchers."""
