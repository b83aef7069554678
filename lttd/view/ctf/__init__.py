"""Family ``ctf``: decodes and prints events of CTF packets."""
