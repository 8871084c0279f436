"""Files over the network and out of archives. No knowledge of what is in them."""
