"""Benchmarks: claims about speed and quality as commands that anyone can repeat (`kizu bench …`)."""
