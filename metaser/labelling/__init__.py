"""Which clips to label next, and how many."""
