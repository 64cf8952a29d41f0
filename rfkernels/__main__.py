"""The entry point of the command line, which needs the packages of the extra `cli`."""

import sys
from importlib.util import find_spec

_NEEDED = ("click", "matplotlib", "rich")


def main() -> None:
    """Run the command line, or say how to install what it needs."""
    if any(find_spec(name) is None for name in _NEEDED):
        print("the command line needs its extra: pip install 'rfkernels[cli]'", file=sys.stderr)
        sys.exit(2)
    from rfkernels.cli import run

    run()


if __name__ == "__main__":
    main()
