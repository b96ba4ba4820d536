"""`apgd doctor`: what would keep a run from working, on this machine or on a cluster's nodes."""
