"""The zoo: architectures that users bring, what becomes of each, and the page that says so; see `__main__`."""
