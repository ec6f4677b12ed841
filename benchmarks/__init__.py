"""Benchmarks that print the ratios which the docs quote: `make bench`."""
