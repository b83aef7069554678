"""Intervals: what lies between a pair of events, such as a system call or a wait for a CPU."""
