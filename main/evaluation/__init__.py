"""Batch inference over a data file, and scores of what it generated."""
