"""The number of examples of a property test or a search: the short and the thorough profile."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

SHORT, THOROUGH = 60, 240
"""Number of examples of a property that names none of its own."""

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
    """Return the number of examples in the loaded profile, given the number in the short one."""
    return short * settings().max_examples // SHORT
