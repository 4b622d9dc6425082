"""Settings of the whole suite: one thread, deterministic hypothesis, and the toy zoo importable as ``hosts``.

``HYPOTHESIS_PROFILE=long`` draws other examples every time, and many more of them; ``--hypothesis-seed`` repeats a run.
"""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

_COMMON = {
    "deadline": None,
    # A host is a fixture of the module, not state that an example could spoil.
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
settings.register_profile("ci", max_examples=100, derandomize=True, **_COMMON)
settings.register_profile("long", max_examples=2000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def seeded():
    """Start every test from the same random state, so that a failure repeats alone."""
    torch.manual_seed(0)
