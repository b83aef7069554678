"""Family ``ftrace``: decodes and prints what tracefs describes."""
