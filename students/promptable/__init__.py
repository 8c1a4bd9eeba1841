"""A student that takes prompts: a teacher's image encoder, distilled into a small one from the archive's own images, without any label."""
