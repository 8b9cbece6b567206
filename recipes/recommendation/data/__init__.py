"""The data: interactions and features, from files, from a package or synthetic, split into sets."""
