"""`watertower`, and `python -m watertower`."""

import sys


def main() -> None:
    """The console script. What it needs is imported in here, so that Ctrl-C meanwhile is one line, too."""
    interrupts: list[object] = []
    try:
        import io
        import signal

        def interrupt(*signal_and_frame: object) -> None:
            interrupts.append(signal_and_frame)
            raise KeyboardInterrupt

        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as in `nohup` or a script's background
            signal.signal(signal.SIGINT, interrupt)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # not every locale has every character of an id
        from watertower.cli import run

        code = run(sys.argv[1:])
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the interpreter's end has nothing to say about it
    except BaseException as error:
        # A library may make another error of the interrupt that meets it while it is imported.
        if not (interrupts or isinstance(error, KeyboardInterrupt)):
            raise
        sys.stderr.write('{"error": "interrupted", "exit_code": 130}\n' if "--json" in sys.argv else "watertower: interrupted\n")
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
