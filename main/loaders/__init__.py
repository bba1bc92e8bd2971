"""Data sets by name, their row formats, and what becomes of a row: token ids and loss masks."""
