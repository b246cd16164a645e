"""Dimensional emotion: ratings such as arousal and valence instead of classes."""
