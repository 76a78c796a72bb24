"""``python -m runtime.simulate``."""

import sys

from runtime.simulate.command import main

sys.exit(main(sys.argv[1:]))
