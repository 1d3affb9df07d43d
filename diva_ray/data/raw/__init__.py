"""Raw samples where they lie: which units of work there are, and how the rows of each are read."""
