"""The offline pipeline: recipe in, bundle out."""
