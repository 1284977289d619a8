"""Images to codes and back: the MoVQGAN for still images."""
