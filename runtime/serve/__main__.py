"""``python -m runtime.serve``."""

import sys

from runtime.serve.command import main

sys.exit(main(sys.argv[1:]))
