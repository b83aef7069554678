"""The clients of a running recorder: ``lttd status`` and its siblings, a module each."""
