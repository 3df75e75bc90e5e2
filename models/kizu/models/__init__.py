"""Parts of a model: networks, the graph that ships, its operating point and its bundle. No data, no loops."""
