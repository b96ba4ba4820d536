"""Models: the encoders that suites name."""
