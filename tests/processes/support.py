"""What the tests of `watertower serve` share."""

QUICK = {"restart_base_ms": 50, "restart_cap_ms": 200}
"""Settings for tests that kill roles often."""
