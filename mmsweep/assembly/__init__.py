"""From a study to the things that train."""
