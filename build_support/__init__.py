"""What setup.py is made of: which sources there are, where the tools are, what ninja is told."""
