"""Processes, files and folders, as every part of the library needs them."""
