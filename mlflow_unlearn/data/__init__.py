"""Sources by name, forget sets, splits and their manifests."""
