"""Datasets: decoded once into memory-mapped Arrow files, split with a seed, served as batches."""
