"""``python -m runtime.loadtest``."""

import sys

from runtime.loadtest.command import main

sys.exit(main(sys.argv[1:]))
