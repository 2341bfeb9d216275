"""Running a sweep on Ray. The only door to ray."""
