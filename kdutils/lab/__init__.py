"""Many small networks at once: training, runs that are kept, and what may be said of them."""
