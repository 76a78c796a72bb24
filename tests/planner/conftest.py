"""Lets the planner's tests import ``planning_worlds``; tests are no package and are never shipped."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
