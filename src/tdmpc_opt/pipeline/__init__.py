"""From a teacher to a scored student in one call, and the demo."""
