"""Students: where their base comes from, their weights, and the engines that serve them."""
