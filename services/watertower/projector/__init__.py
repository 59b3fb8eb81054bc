"""Log -> fold -> store -> counts feed. `projector.py` is the loop as steps, `start.py` what must hold before the first one."""
