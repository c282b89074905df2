"""Hostile input for every parser and every walker, see ``targets.py``."""
