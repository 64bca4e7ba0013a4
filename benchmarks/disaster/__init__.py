"""Disasters with the guard and without, and healthy footage that must not alarm it. See `__main__`."""
