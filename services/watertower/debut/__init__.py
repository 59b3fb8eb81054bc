"""The debut: a star joins, a million people press Follow. A real service, real processes, real gRPC, and an independent recount.

`plan.py` says who presses what and when (pure), `surge.py` sends it, `readers.py` reads meanwhile from another process, `visible.py` waits
for what is sent to be counted, `run.py` puts them together.
"""


class DebutFailed(Exception):
    """The debut could not be run to its end."""
