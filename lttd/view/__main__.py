"""``python -m lttd.view``: the program ``lttv``."""

import sys

from lttd.entry import lttv

sys.exit(lttv())
