"""Source ``blktrace``: the block layer's trace of a device."""
