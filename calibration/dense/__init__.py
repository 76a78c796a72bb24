"""Dense data: images with masks of classes, images of people with the places of their joints."""
