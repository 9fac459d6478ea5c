"""Whole jobs, each one function: what the command line calls, and what a program can call as well."""
