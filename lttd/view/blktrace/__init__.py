"""Family ``blktrace``: decodes and prints records of the block layer."""
