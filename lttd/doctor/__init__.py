"""``lttd doctor``: what this machine allows lttd, each with its remedy."""
