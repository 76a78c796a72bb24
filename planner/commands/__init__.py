"""The commands of the planner."""
