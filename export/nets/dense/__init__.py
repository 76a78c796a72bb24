"""Networks with dense answers: trunks, heads, and the families of segmentation and pose."""
