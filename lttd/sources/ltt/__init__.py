"""Source ``ltt``: the channels of an LTTng 0.x kernel."""
