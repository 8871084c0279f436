"""How fast this machine is, what a bigger one would do, and `doctor`. Nothing here alters a run or a dataset."""
