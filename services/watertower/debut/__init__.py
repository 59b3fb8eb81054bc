"""The debut: a star joins, a million people press Follow. A real service, real processes, real gRPC, and an independent recount.

`plan.py` says who presses what and when (pure), `surge.py` sends it, `readers.py` reads meanwhile from another process, `run.py` puts
them together.
"""
