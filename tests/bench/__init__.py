"""The speed of the inspector, compared with a bound or a peer measured in the same run.

    python -m tests.bench

The bench is not a test: nothing here fails because of a time.
"""
