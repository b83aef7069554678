"""Source ``ftrace``: the kernel's ftrace ring buffers, through tracefs."""
