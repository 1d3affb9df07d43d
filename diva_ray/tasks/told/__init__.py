"""What runs say and write: figures, words, pages, samples."""
