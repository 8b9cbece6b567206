"""What stands around a rule."""
