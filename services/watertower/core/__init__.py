"""What is decided, and nothing else: no clock, no randomness, no I/O. Standard library only.

`fold.py` is the one file where exactness is decided.
"""
