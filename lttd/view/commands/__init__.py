"""The commands of ``lttv``, a module each."""
