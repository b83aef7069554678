"""Stacks of a window: counted, named, folded and drawn."""
