"""The version of ccreid."""

__version__ = "0.1.0"
