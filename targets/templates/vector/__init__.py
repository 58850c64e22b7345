"""What templates write their code with: vectors, their arithmetic, and the instructions for dot products."""
