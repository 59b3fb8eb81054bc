"""Ends what a test started when the test itself was ended without a chance to do so."""

import subprocess
from contextlib import suppress


class Warden:
    """A shell that waits for a word of this process, and does its one deed if this process ends without it, however it ends.

    (A parent-death signal, the kernel's own way, would fire when the *thread* that started the node ends.)
    """

    def __init__(self, deed: str, *arguments: str) -> None:
        """`deed` is shell, with `arguments` as $0, $1, ..."""
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", f"read -r _ || {{\n{deed}\n}}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # or Ctrl-C would end the warden before its deed
        )

    def dismiss(self) -> None:
        """The deed is not needed any more."""
        if self._shell.stdin is not None:
            with suppress(BrokenPipeError):
                self._shell.stdin.write(b"\n")
                self._shell.stdin.close()
        self._shell.wait()
