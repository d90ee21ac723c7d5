"""Other people's files, read and written exactly, without their software."""
