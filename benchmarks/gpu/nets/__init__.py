"""Networks to measure, as folders that one machine makes and another opens."""
