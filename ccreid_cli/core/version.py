"""The version of ccreid."""

__version__ = "0.2.0"
