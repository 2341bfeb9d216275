"""What comes after a sweep, without Ray: choose a model, open the test split for it once, register it."""
