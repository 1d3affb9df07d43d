"""How a run begins: options and columns checked, a plan made, rows loaded and scanned; what it keeps to be resumed."""
