"""Where prompts come from, and in which order slices are asked."""
