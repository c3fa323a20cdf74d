"""`python -m aerodrome` is the `aerodrome` command."""

from aerodrome.cli.main import main

if __name__ == "__main__":
    main()
