"""How long the fuzzing takes: a fixed seed and few examples in the suite, new ones for an hour by `bash .ci/fuzz`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "earl-hypothesis")
COMMON = settings(
    database=None,
    deadline=None,  # no test depends on how fast a machine is
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
    print_blob=True,
)
settings.register_profile("suite", COMMON, derandomize=True, max_examples=int(os.environ.get("EARL_FUZZ", "40")))
settings.register_profile("hour", COMMON, derandomize=False, max_examples=int(os.environ.get("EARL_FUZZ", "1000")))
settings.load_profile("hour" if "EARL_FUZZ" in os.environ else "suite")
