"""The load test: an open loop against a service that runs elsewhere, with thresholds, an exact recount, and a report.

`schedule.py` says who calls what and when (pure), `generator.py` sends it on time, `measure.py` and `histogram.py` keep what came back,
`recount.py` looks whether what was acknowledged is there once, `scenarios.py` has the scenarios, `thresholds.py` judges, `report.py` tells,
`run.py` puts them together.
"""


class LoadFailed(Exception):
    """The load test could not be run to its end."""
