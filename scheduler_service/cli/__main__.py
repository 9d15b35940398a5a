"""`python -m scheduler_service.cli`: the same as the console script."""

from scheduler_service.cli import main

if __name__ == "__main__":
    main()
