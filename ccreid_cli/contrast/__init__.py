"""The cluster memory and the batches it is trained with."""
