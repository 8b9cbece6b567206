"""What recipes share that fine-tune: methods by name, and the adapters of runs as files."""
