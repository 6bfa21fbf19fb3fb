"""Published models behind our contracts, one file a family; the starter's weights."""
