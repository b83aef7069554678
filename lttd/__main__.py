"""``python -m lttd``: the program ``lttd``."""

import sys

from lttd.entry import lttd

sys.exit(lttd())
