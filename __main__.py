"""The command line, where the folder of scripts is not on the path: ``python -m tersor``."""

from .cli.main import main

if __name__ == "__main__":
    main()
