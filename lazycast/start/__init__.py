"""How ranks start, meet, and get their object; and how it ends with the process."""
