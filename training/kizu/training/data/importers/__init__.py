"""Importers: one module per source layout, all on `staging`, so that a data set appears complete or not at all."""
