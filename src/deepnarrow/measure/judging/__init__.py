"""Judging: evaluations that are kept, compared with one another, and looked into."""
