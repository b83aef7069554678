"""Source ``ftrace``: the kernel's ftrace ring buffers, by tracefs."""
