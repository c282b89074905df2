"""How much a property test or a search tries: the short profile and the thorough one."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

SHORT, THOROUGH = 60, 240
"""Examples of a property that names no number of its own."""

for name, count in {"short": SHORT, "thorough": THOROUGH}.items():
    settings.register_profile(
        name,
        deadline=None,
        max_examples=count,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def thorough() -> bool:
    """Say whether the thorough profile is loaded."""
    return settings().max_examples >= THOROUGH


def examples(short: int) -> int:
    """Return how much to try in the profile that is loaded, for a number in the short one."""
    return short * settings().max_examples // SHORT
