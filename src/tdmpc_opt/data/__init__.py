"""Episodes on disk, and the slices that training draws from them."""
