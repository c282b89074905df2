"""Everything that is fuzzed, by name."""

from __future__ import annotations

from collections.abc import Mapping

from tests.fuzz.dumps import DUMPS
from tests.fuzz.kernels import KERNELS
from tests.fuzz.partners import PARTNERS
from tests.fuzz.target import Target
from tests.fuzz.texts import TEXTS
from tests.fuzz.walkers import WALKERS

__all__ = ["TARGETS"]

TARGETS: Mapping[str, Target] = {**DUMPS, **KERNELS, **TEXTS, **PARTNERS, **WALKERS}
