"""Many small networks at once: training, runs that are kept, and what may be said of them."""

from kdutils.tasks import cost

__all__ = ["cost"]
