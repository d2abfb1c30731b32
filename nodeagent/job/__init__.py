"""Jobs on this node: which process is of which."""
