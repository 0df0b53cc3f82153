"""Tools that make what the repository bundles; nothing here is installed with the package."""
