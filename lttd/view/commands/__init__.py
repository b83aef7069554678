"""The commands of ``lttv``, one module for each."""
