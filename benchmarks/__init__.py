"""One script a published table; each prints what the README states."""
