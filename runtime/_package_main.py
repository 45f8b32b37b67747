"""``python -m intentpm`` is the ``intentpm`` command."""

from intentpm.launch.cli import main

if __name__ == "__main__":
    main()
