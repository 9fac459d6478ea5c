"""Measurements, and what makes the bundled model; none of it is installed with melodia."""
