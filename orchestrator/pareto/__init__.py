"""What is best: dominance, hypervolume, and choosing among the models of a front. Pure functions on arrays."""
