"""Dumps: one module for each format, and for each way in which a file is wrapped."""
