"""``python -m halpiee.cli``."""

from halpiee.cli.app import main

if __name__ == "__main__":
    main()
