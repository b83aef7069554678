"""Source ``replay``: files of whole sub-buffers that were recorded before."""
