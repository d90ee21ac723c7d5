"""Arrays in, pictures out: of photographs, matches, features and curves."""
