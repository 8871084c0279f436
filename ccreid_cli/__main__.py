"""``python -m ccreid_cli``: what torchrun starts."""

from ccreid_cli.cli.app import main

if __name__ == "__main__":
    main()
