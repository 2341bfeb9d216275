"""Judging the file that ships, in the runtime that serves it."""
