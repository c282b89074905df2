"""How fast the inspector is, beside a bound or a peer that is measured in the same run.

    python -m tests.bench

Not a test: nothing here fails because of a time.
"""
