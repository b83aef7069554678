"""Source ``relay``: the relay channels of kernel modules."""
