"""paramctl: look into the parameters of neural networks, and change them, from the shell."""
