"""Distilling with a curriculum: the helper package of the book.

A curriculum is a list of stages; a stage is a signal and a number of steps; `train(students, task,
curriculum)` runs any of them.
"""

__version__ = "0.2.0"
