"""The commands of `apgd`, one module each: options, checks, and what is printed."""
