"""Elsewhere: what a card says. CODE; prints what it prints."""

import sys

import refuse  # noqa: F401

exec(sys.argv[1])
