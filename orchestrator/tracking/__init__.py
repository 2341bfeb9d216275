"""Showing results in MLflow. The only door to mlflow; everything here can be rebuilt from the facts."""
