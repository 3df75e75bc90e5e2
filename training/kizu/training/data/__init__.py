"""Data sets: the manifest, importers into it, leakage-free splits, rendered boards and loading."""
