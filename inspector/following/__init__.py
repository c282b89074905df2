"""Calls of a kernel that the model follows, recorded or live, and who wrote a word."""
