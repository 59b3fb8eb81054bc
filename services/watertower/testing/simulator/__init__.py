"""Deterministic simulation: the real ingest, projector, fold and query on a simulated log, store, feed, network and clock.

A seed decides everything. See run.simulate.
"""
