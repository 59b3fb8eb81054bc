"""How much a load test may be asked for."""

SECONDS_MAX = 3_600
"""Seconds of a scenario that lasts as long as it is told."""

RATE_MAX = 20_000
"""Calls a second, of reads and of follows."""

FOLLOWERS_MAX = 5_000_000
"""Followers of a debut."""

TIMES_MAX = 1_000
"""Times the rate of 2019."""

PROFILES_MAX = 1_000_000
"""Profiles of the population."""

CLIENTS_MAX = 1_000
"""Clients of a herd, each with connections of its own."""

OUTAGE_S_MAX = 300
"""Seconds of a herd's outage."""
