"""Looking into the compiler: dumps of what passes did, and the float64 oracle of what is right."""
