"""A page on this machine to correct identities by hand: decisions, their journal, the server, the page."""
