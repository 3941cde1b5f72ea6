"""Critics: what V(prompt) or V of each token is made of, behind one protocol."""
