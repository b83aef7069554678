"""Benchmarks that print the figures which lttd's goals are stated in."""
