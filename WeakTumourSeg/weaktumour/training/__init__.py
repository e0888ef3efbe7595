"""How the shipped networks were trained, and how to train one's own: `weaktumour train registration|segmentation`."""
