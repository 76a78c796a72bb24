"""From candidate plans to a measured, published bundle."""
