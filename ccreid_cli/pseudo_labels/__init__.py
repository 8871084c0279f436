"""Features to labels, in one process or many: one path. No images, no networks, no identities but for diagnosis."""
