"""What turns text into settings: YAML, flags and environment, judge templates, and errors that name the place."""
