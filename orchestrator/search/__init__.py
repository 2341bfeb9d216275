"""Proposing recipes. The only door to optuna."""
