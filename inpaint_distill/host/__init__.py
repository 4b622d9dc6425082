"""Reading a host without changing it."""
