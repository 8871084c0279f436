"""What a shell shows at the cursor: its script, the answer to it, and the values of options. Imports no torch."""
