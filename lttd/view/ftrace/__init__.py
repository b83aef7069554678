"""Family ``ftrace``: decodes and prints events by the format files of tracefs."""
