"""Readers that say which file and row is wrong: tables of rows, arrays and images, data in packages."""
