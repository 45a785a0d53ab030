"""What all tests share: Hypothesis draws the same examples in every run and has no deadline."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=100)
settings.register_profile(
    "thorough", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("CONVBENCH_HYPOTHESIS", "repeatable"))
