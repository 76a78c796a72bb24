"""``python -m runtime.bench``."""

import sys

from runtime.bench.command import main

sys.exit(main(sys.argv[1:]))
