"""Dumps: one file for each format, and for how a file is wrapped."""
