"""Where samples come from, and the networks of the book."""
