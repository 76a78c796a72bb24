"""Parts of probing: lines of shape tensors, and the length axis."""
