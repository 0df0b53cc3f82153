"""`python -m allotrope`."""

from allotrope.cli import entry

entry()
