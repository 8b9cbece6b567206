"""What an optimizer remembers: slots, how they are stored, how they begin, and files of them."""
