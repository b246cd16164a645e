"""Which languages to learn from, and what is inside trained models."""
