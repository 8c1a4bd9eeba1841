"""Every error of the flows room, as one hierarchy.

FlowError
├── RecipeError           (ValueError) the recipe file cannot be used; names file, key, value and cure
├── ReviewError           a verdict that says nothing about anything there is
├── StageError            a stage cannot start, because what it builds on is missing
└── DemoError             the demonstration cannot be written where it was asked to
"""


class FlowError(Exception):
    """Base of everything this room raises on purpose."""


class RecipeError(FlowError, ValueError):
    """A recipe that cannot be used: which file, which key, the value found, and what to write instead."""


class StageError(FlowError):
    """A stage has nothing to build on; the message names the command that makes it."""


class ReviewError(FlowError):
    """A reviewer named a class, a slice or themselves in a way that cannot be used; the message says which there are."""


class DemoError(FlowError):
    """The demonstration cannot be written where it was asked to."""
