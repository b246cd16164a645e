"""Which languages to learn from, and what trained models hold."""
