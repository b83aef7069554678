"""A toy source with an ABI of its own: what somebody writes who adds one to lttd.

A sub-buffer begins with two u64, its begin and the number of its events; an event is two u64, its
time and a value.  ``cpu0`` and so on hold sub-buffers of 256 bytes, whose rest is padding.
"""
