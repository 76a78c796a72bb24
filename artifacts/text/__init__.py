"""Text: how a network of tokens wants its texts, and the way from strings to rows of its inputs."""
