"""Images: how a network wants them, the usual conventions, and the way from a file to the pixels of a row."""
