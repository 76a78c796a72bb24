"""``python -m runtime.triton_repository``."""

import sys

from runtime.triton_repository.command import main

sys.exit(main(sys.argv[1:]))
