"""Source ``replay``: files of whole sub-buffers from an earlier recording."""
