"""Training: the net, its members, what watches over them, and several processes."""
