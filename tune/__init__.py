"""What knows about clusters, trials and tracking."""
