"""The model follows the calls of a kernel, recorded or live; and the writers of a word."""
