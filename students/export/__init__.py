"""Students in the formats of other programs, each compared with the original before it is called an export."""
