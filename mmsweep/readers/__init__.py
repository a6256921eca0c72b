"""What shows a sweep: they read its record, and write nothing that training reads. None parses a study."""
