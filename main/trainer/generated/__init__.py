"""Answers of the policy to evaluation rows while it is trained, and their scores."""
