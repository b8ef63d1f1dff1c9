"""`python -m tsupervise` is `tsupervise`."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="tsupervise")
