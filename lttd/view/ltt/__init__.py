"""Family ``ltt``: decodes and prints events of LTTng 0.x."""
