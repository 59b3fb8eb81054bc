"""`python -m watertower`."""

from watertower.cli import main

if __name__ == "__main__":
    main()
