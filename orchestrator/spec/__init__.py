"""What is asked: recipes, search spaces, objectives, jobs, and how they are read from files."""
