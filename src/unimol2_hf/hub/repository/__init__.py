"""Files that publishing copies into a repository as they are: they import nothing of this package."""
