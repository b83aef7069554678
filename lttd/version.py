"""lttd's version, for packaging and programs."""

from typing import Final

VERSION: Final = "0.1.0"
