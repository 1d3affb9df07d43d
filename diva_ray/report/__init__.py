"""Pages that show what a job found: self-contained HTML, made from plain Python values."""
