"""Benchmarks that print the figures of lttd's goals."""
