"""What the book's pages need: settings, claims, figures, explorers, exercises."""
