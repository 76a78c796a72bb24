"""The cache of built engines, and the engines that travel in a bundle."""
