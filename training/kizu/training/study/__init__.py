"""The study of `kizu bench scarce`: what synthetic NG are worth on the user's own data, on the user's own machine."""
